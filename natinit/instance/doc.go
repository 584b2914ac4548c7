// Package instance holds what every part of firsthop needs to know about the files of an instance: where its run and
// state directories are, who else may write there, the locks in them, and how a file in them is read and replaced.
//
// # Links and trust
//
// The directories may be given by the administrator and may lie anywhere, also below a directory that other users may
// write. Three rules keep such a place from deciding what root does:
//
//   - A directory is opened once, component by component, and everything that happens in it goes through its file
//     descriptor. Nobody can exchange the directory between two steps. Links on the way are followed, as an
//     administrator may have moved /var/lib to another disk, but only root's: what is written would else end up in a
//     directory that others choose. Below /proc/PID/root, absolute links lead to that root.
//   - A file in it is never opened through a link, and never written in place, except for locks, which are written only
//     after it is known that they are regular files of ours.
//   - What a file says counts only where it and every directory on the way belong to root and nobody else may write
//     them ([ReadFile], [ErrUntrusted]). A directory with the sticky bit on the way, as /tmp, is accepted, and reported
//     ([Trust.Exposed]): others can't replace our directory there, but may have been there first.
//
// [Replace] is the only place in this tree that replaces a file. Why neither it nor the locks are a library's:
// docs/decisions/0013-locks-and-files-by-descriptor.md.
package instance
