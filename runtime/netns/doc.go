// Package netns finds the network namespaces of a node and looks into them.
//
// A namespace has no list anywhere in the kernel that could be asked. It lives
// as long as something holds it: a process, or a bind mount of its file, as
// container runtimes make below /run/netns. [Config.List] looks at both.
//
// Its identity for programs is its cookie, which the kernel never gives out
// twice: a counter of 64 bits that only grows until the next boot
// (include/linux/cookie.h, gen_cookie_next, kernel commit 92acdc58ab11). The
// inode number of its file is used again for the next namespace, so nothing
// here outlives one visit but by its cookie, which natinit.Cookies tells from inside.
//
// [Config.Visit] enters namespaces on a thread that ends afterwards. No thread
// that other goroutines use is ever elsewhere, whatever fails.
package netns
