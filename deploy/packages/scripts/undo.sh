unit=firsthop-init.service

# undo takes away what firsthop does on this node if something else serves the Service addresses, and leaves it serving
# until the next reboot if not: who removes a package does not ask for a node without its API server.
undo() {
	[ -x /usr/bin/firsthop ] || return 0
	# Not from a chroot, as where an image is made: the programs are those of the host around it.
	if [ ! -d /run/systemd/system ] || [ ! / -ef /proc/1/root/. ]; then
		return 0
	fi
	# Not for others: an install without the package, or a running firsthop such as the DaemonSet's.
	if [ -e "/etc/systemd/system/$unit" ]; then
		echo "firsthop: /etc/systemd/system/$unit is not of this package: nothing is undone" >&2
		return 0
	fi
	for comm in /proc/[0-9]*/comm; do
		if read -r name 2>/dev/null <"$comm" && [ "$name" = firsthop ]; then
			echo "firsthop: another firsthop runs on this node (${comm%/comm}): nothing is undone" >&2
			return 0
		fi
	done
	if said=$(/usr/bin/firsthop uninstall 2>&1); then
		echo "$said"
		return 0
	fi
	echo "$said" >&2
	echo "firsthop: what serves the Service addresses now stays until the next reboot, and does not come back after it." >&2
}

# forget removes what firsthop saved for the next boot.
forget() {
	if [ -e "/etc/systemd/system/$unit" ]; then # of an install without the package, which needs it
		return 0
	fi
	rm -rf /var/lib/firsthop
}
