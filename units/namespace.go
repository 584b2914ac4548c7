package units

import (
	"strings"

	"github.com/firsthop/firsthop/units/unitfile"
)

// namespacing are the directives that give a service a mount namespace of its
// own, in which its mounts would stay: exec_needs_mount_namespace() in
// systemd's src/core/execute.c (v219 to v257) and systemd.exec(5), "Sandboxing".
// Whole families go by prefix, because each release adds members and because
// Private* and Protect* that need no namespace today (ProtectClock=,
// PrivateUsers=) take something else that we need.
var (
	namespacingFamilies = []string{"Private", "Protect", "Root", "Bind", "Extension"}
	namespacing         = []string{
		"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths",
		"ReadWriteDirectories", "ReadOnlyDirectories", "InaccessibleDirectories", // before 231
		"TemporaryFileSystem", "MountImages", "MountFlags", "MountAPIVFS",
		"ProcSubset", "DynamicUser", "LogNamespace", "IPCNamespacePath", "NetworkNamespacePath",
		"RuntimeDirectory", "StateDirectory", "CacheDirectory", "LogsDirectory", "ConfigurationDirectory", // with :ro, or DynamicUser=
		"JoinsNamespaceOf", "BPFDelegateCommands", "DelegateNamespaces",
		"LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential",
	}
)

// impliesMountNamespace reports whether a directive of that name may put a
// service into a mount namespace of its own.
func impliesMountNamespace(name string) bool {
	for _, f := range namespacingFamilies {
		if strings.HasPrefix(name, f) {
			return true
		}
	}
	for _, n := range namespacing {
		if n == name {
			return true
		}
	}
	return false
}

// namespacingIn lists such directives in a drop-in, unless they are switched off.
func namespacingIn(data []byte) []string {
	var found []string
	for _, o := range unitfile.Parse(string(data)) {
		off := o.Value == "" || o.Value == "no" || o.Value == "false" || o.Value == "off" || o.Value == "0"
		if !off && impliesMountNamespace(o.Key) {
			found = append(found, o.Key+"="+o.Value)
		}
	}
	return found
}
