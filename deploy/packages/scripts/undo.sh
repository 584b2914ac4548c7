unit=firsthop-init.service
runtime=firsthop.service

# others says that this node has firsthop by an install without the package too, whose unit has the same name.
others() { [ -e "/etc/systemd/system/$unit" ]; }

# halt ends the package's runtime, whose program goes. What it has made serves on.
halt() {
	if [ -d /run/systemd/system ] && [ / -ef /proc/1/root/. ]; then
		systemctl stop "$runtime" >/dev/null 2>&1 || true
	fi
}

# undo takes away what firsthop does on this node if something else serves the Service addresses, and leaves it serving
# until the next reboot if not: who removes a package does not ask for a node without its API server.
undo() {
	[ -x /usr/bin/firsthop ] || return 0
	# Not from a chroot, as where an image is made: the programs are those of the host around it.
	if [ ! -d /run/systemd/system ] || [ ! / -ef /proc/1/root/. ]; then
		return 0
	fi
	# Not what is of others too: of an install without the package, or of a running firsthop such as the DaemonSet's.
	if others; then
		echo "firsthop: /etc/systemd/system/$unit is not of this package: nothing is undone" >&2
		return 0
	fi
	for comm in /proc/[0-9]*/comm; do
		if read -r name 2>/dev/null <"$comm" && [ "$name" = firsthop ]; then
			echo "firsthop: another firsthop runs on this node (${comm%/comm}): nothing is undone" >&2
			return 0
		fi
	done
	# Without its warning that the unit stays enabled: it goes with the package.
	if said=$(/usr/bin/firsthop uninstall --log-level error 2>&1); then
		printf "%s\n" "$said"
		return 0
	fi
	printf "%s\n" "$said" >&2
	echo "firsthop: what serves the Service addresses now stays until the next reboot. Before a removal, firsthop uninstall --force undoes it at once." >&2
}

# stranded says that this node needs the Service IP to start, which nothing would serve after the next reboot: then the
# package must stay. It prints which files are to be changed, and how. 8 is an exit code of firsthop uninstall.
stranded() {
	[ -x /usr/bin/firsthop ] && [ -d /run/systemd/system ] && [ / -ef /proc/1/root/. ] || return 1
	! others || return 1
	code=0
	said=$(/usr/bin/firsthop uninstall --dry-run 2>&1) || code=$?
	[ "$code" -eq 8 ] || return 1
	printf "%s\n" "$said" >&2
	echo "firsthop: the package stays. To remove it nevertheless: firsthop uninstall --force, then remove it again." >&2
}

# forget removes what firsthop saved for the next boot.
forget() { rm -rf /var/lib/firsthop; }
