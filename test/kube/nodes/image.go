package nodes

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/firsthop/firsthop/test/kube/binaries"
)

// image is one for containerd to import: an archive as `docker save` writes it, of one layer.
type image struct {
	Tags       []string
	Entrypoint []string
	Files      [][2]string // path in the image, file of the machine
}

// kubernetesImages are those of Kubernetes' programs, by their names: kubeadm runs them by the program's name, which is found
// in PATH.
func (f files) kubernetesImages() (map[string]image, error) {
	images := map[string]image{
		"pause": {
			Tags:       []string{"registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.10"},
			Entrypoint: []string{"/pause"}, Files: [][2]string{{"pause", f.program("pause")}},
		},
		"etcd":    {Tags: []string{"registry.k8s.io/etcd:3.6.8-0"}, Files: [][2]string{{"usr/local/bin/etcd", f.program("etcd")}}},
		"coredns": {Tags: []string{"registry.k8s.io/coredns/coredns:v1.14.2"}, Entrypoint: []string{"/coredns"}, Files: [][2]string{{"coredns", f.program("coredns")}}},
		"load":    {Tags: []string{"fh.test/load:1"}, Entrypoint: []string{"/load"}, Files: [][2]string{{"load", f.program("load")}}},
		"firsthop": {
			Tags:       []string{"ghcr.io/firsthop/firsthop:latest", Image},
			Entrypoint: []string{"/usr/bin/firsthop"}, Files: [][2]string{{"usr/bin/firsthop", f.firsthop}},
		},
	}
	images["firsthop-next"] = image{Tags: []string{NextImage}, Entrypoint: []string{"/usr/bin/firsthop"}, Files: [][2]string{{"usr/bin/firsthop", f.next}}}
	netfilter, err := netfilter(f.root)
	if err != nil {
		return nil, err
	}
	images["kube-proxy"] = image{
		Tags:  []string{"registry.k8s.io/kube-proxy:" + f.version},
		Files: append(netfilter, [2]string{"usr/local/bin/kube-proxy", f.program("kube-proxy")}),
	}
	for _, name := range controlPlanePrograms {
		images[name] = image{Tags: []string{"registry.k8s.io/" + name + ":" + f.version}, Files: [][2]string{{"usr/local/bin/" + name, f.program(name)}}}
	}
	return images, nil
}

// controlPlanePrograms are those of Kubernetes that kubeadm runs as pods of a control plane.
var controlPlanePrograms = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler"}

// The images of firsthop: that of the program of the nodes, which is what its `firsthop cluster install` asks for, and that of
// another version.
const (
	Image     = "ghcr.io/firsthop/firsthop:" + testVersion
	NextImage = "ghcr.io/firsthop/firsthop:" + nextVersion
)

// netfilter are the programs that kube-proxy runs, with their libraries, from a root file system. Without the list of protocols
// nft says 6 where kube-proxy wrote tcp, which then takes what it has written for something old and deletes it.
func netfilter(root string) (files [][2]string, err error) {
	patterns := []string{"etc/protocols", "usr/sbin/nft", "usr/sbin/conntrack", "usr/lib/*/xtables/*.so"}
	for _, lib := range []string{"c", "m", "nftables", "nftnl", "mnl", "xtables", "jansson", "gmp", "edit", "tinfo", "bsd", "md", "netfilter_conntrack", "nfnetlink"} {
		patterns = append(patterns, "usr/lib/*/lib"+lib+".so.*")
	}
	for _, pattern := range patterns {
		names, _ := filepath.Glob(filepath.Join(root, pattern)) // no pattern is malformed
		if len(names) == 0 {
			return nil, &fs.PathError{Op: "find", Path: filepath.Join(root, pattern), Err: fs.ErrNotExist}
		}
		for _, name := range names {
			files = append(files, [2]string{strings.TrimPrefix(name, root+"/"), name})
		}
	}
	loaders, _ := filepath.Glob(filepath.Join(root, "usr/lib64/ld-*.so*"))
	for _, name := range loaders {
		files = append(files, [2]string{"lib64/" + filepath.Base(name), name})
	}
	for _, name := range iptables {
		files = append(files, [2]string{"usr/sbin/" + name, filepath.Join(root, "usr/sbin/xtables-nft-multi")})
	}
	return files, nil
}

func (f files) program(name string) string { return filepath.Join(f.programs, name) }

// ensureImages writes the archives that are older than what is in them.
func (f files) ensureImages(log io.Writer) error {
	if err := os.MkdirAll(f.images, 0o755); err != nil {
		return err
	}
	images, err := f.kubernetesImages()
	if err != nil {
		return err
	}
	for name, img := range images {
		to := filepath.Join(f.images, name+".tar")
		inputs := []string{filepath.Join(f.repository, "test/kube/nodes/image.go")} // which says what is in them
		for _, f := range img.Files {
			inputs = append(inputs, f[1])
		}
		if binaries.Newer(to, inputs...) {
			continue
		}
		fmt.Fprintf(log, "writing the image %s\n", img.Tags[0])
		if err := img.write(to); err != nil {
			return fmt.Errorf("write image %s: %w", name, err)
		}
	}
	return nil
}

// write writes the archive; it is there completely or not at all.
func (i image) write(to string) error {
	layer, err := i.layer()
	if err != nil {
		return err
	}
	return writeImages(to, bytes.NewReader(layer), []Config{{Tags: i.Tags, Entrypoint: i.Entrypoint}})
}

// Config is what one image has beside its layer.
type Config struct {
	Tags, Entrypoint, Cmd []string
}

// WriteImages writes an archive for Node.ImportFile, of images that have one layer in common: a tar file.
func WriteImages(to, layer string, images []Config) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeImages(to, f, images)
}

func writeImages(to string, layer io.ReadSeeker, images []Config) error {
	hash := sha256.New()
	size, err := io.Copy(hash, layer)
	if err == nil {
		_, err = layer.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("read the layer: %w", err)
	}
	id := hex.EncodeToString(hash.Sum(nil))
	f, err := os.Create(to + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	layerName := id + "/layer.tar"
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: layerName, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(out, layer); err != nil {
		return err
	}
	var manifest []map[string]any
	for _, img := range images {
		config, err := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{
				"Entrypoint": img.Entrypoint, "Cmd": img.Cmd, "WorkingDir": "/",
				"Env": []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + id}},
		})
		if err != nil {
			return err
		}
		name := sum(config) + ".json"
		if err := add(out, name, 0o644, config); err != nil {
			return err
		}
		manifest = append(manifest, map[string]any{"Config": name, "RepoTags": img.Tags, "Layers": []string{layerName}})
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	if err := add(out, "manifest.json", 0o644, data); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}

// layer is the image's only one: its files, and what a program may expect.
func (i image) layer() ([]byte, error) {
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	dirs := map[string]bool{".": true}
	var mkdir func(dir string) error
	mkdir = func(dir string) error {
		if dirs[dir] {
			return nil
		}
		dirs[dir] = true
		if err := mkdir(path.Dir(dir)); err != nil {
			return err
		}
		mode := int64(0o755)
		if dir == "tmp" {
			mode = 0o1777
		}
		return out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode})
	}
	for _, dir := range []string{"tmp", "etc"} {
		if err := mkdir(dir); err != nil {
			return nil, err
		}
	}
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0::/:/\nnobody:x:65534:65534::/:/\n", "etc/group": "root:x:0:\n"} {
		if err := add(out, name, 0o644, []byte(text)); err != nil {
			return nil, err
		}
	}
	for _, file := range i.Files {
		if err := mkdir(path.Dir(file[0])); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(file[1])
		if err != nil {
			return nil, err
		}
		if err := add(out, file[0], 0o755, data); err != nil {
			return nil, err
		}
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func add(out *tar.Writer, name string, mode int64, data []byte) error {
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := out.Write(data)
	return err
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}
