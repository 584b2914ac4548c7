package apiserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// maxFile bounds what is read of any file of the host. A kubeconfig is
// 10 kB; a manifest or a ConfigMap can at most be 1 MiB in the API.
const maxFile = 1 << 20

// readFile reads a regular file of the host. path is as the host sees it;
// symbolic links are followed below root, absolute ones too: the kubelet's
// client certificate is one (kubelet-client-current.pem).
func readFile(root, path string) ([]byte, error) {
	real, err := hostPath(root, path)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: a FIFO in the place of a file must not hang the node's boot.
	f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, plainPathError(path, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, plainPathError(path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return b, nil
}

// plainPathError names the host's path, not the one below root.
func plainPathError(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", path, pe.Err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// exists reports whether the host has something at path.
func exists(root, path string) bool {
	real, err := hostPath(root, path)
	if err != nil {
		return false
	}
	_, err = os.Stat(real)
	return err == nil
}

// glob lists the host's paths that match, in lexical order.
func glob(root, pattern string) []string {
	dir, err := hostPath(root, filepath.Dir(pattern))
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if ok, _ := filepath.Match(filepath.Base(pattern), e.Name()); ok {
			out = append(out, filepath.Join(filepath.Dir(pattern), e.Name()))
		}
	}
	return out
}

// hostPath turns a path of the host into one that this process can open. With
// a root, links are followed below it: an absolute target would lead out of it.
// Nobody who could swap links between check and use is weaker than root on the
// host.
func hostPath(root, path string) (string, error) {
	if root == "" || root == "/" {
		return path, nil
	}
	real, err := securejoin.SecureJoin(filepath.Clean(root), path)
	if err != nil {
		return "", plainPathError(path, err)
	}
	return real, nil
}
