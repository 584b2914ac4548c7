package apiserver

import "github.com/firsthop/firsthop/mounts/hostfs"

// readFile reads a file of the host that only root may write: what it says decides which API servers this node
// believes.
func readFile(root, path string) ([]byte, error) { return hostfs.FS{Root: root}.ReadTrusted(path) }

// exists reports whether the host has something at path.
func exists(root, path string) bool { return hostfs.FS{Root: root}.Exists(path) }

// glob lists the host's paths that match, in lexical order.
func glob(root, pattern string) []string { return hostfs.FS{Root: root}.Glob(pattern) }
