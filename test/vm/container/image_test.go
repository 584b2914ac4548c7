package container

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// imageConfig is what an image says of the process in it.
type imageConfig struct {
	User       spec
	Entrypoint []string
	Env        []string
	WorkingDir string
}

type descriptor struct {
	Digest   string `json:"digest"`
	Platform struct {
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// unpack does with the image for this machine's architecture what a runtime does.
func unpack(t *testing.T, archive, rootfs string) imageConfig {
	t.Helper()
	files := make(map[string][]byte)
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eachFile(t, f, func(h *tar.Header, r io.Reader) {
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	})
	blob := func(d descriptor) []byte { return files["blobs/"+strings.ReplaceAll(d.Digest, ":", "/")] }
	parse := func(data []byte, into any) {
		t.Helper()
		if err := json.Unmarshal(data, into); err != nil {
			t.Fatal(err)
		}
	}
	var top, index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	parse(files["index.json"], &top)
	parse(blob(top.Manifests[0]), &index)
	for _, m := range index.Manifests {
		if m.Platform.Architecture == "amd64" {
			parse(blob(m), &manifest)
		}
	}
	var config struct {
		Config struct {
			User, WorkingDir string
			Entrypoint, Env  []string
		} `json:"config"`
	}
	parse(blob(manifest.Config), &config)
	for _, layer := range manifest.Layers {
		z, err := gzip.NewReader(bytes.NewReader(blob(layer)))
		if err != nil {
			t.Fatal(err)
		}
		eachFile(t, z, func(h *tar.Header, r io.Reader) {
			at := filepath.Join(rootfs, h.Name)
			if h.Typeflag == tar.TypeDir {
				err = os.MkdirAll(at, h.FileInfo().Mode())
			} else {
				var out *os.File
				if out, err = os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode()); err == nil {
					_, err = io.Copy(out, r)
					err = errors.Join(err, out.Close())
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	uid, gid, _ := strings.Cut(config.Config.User, ":")
	u, err := strconv.Atoi(uid)
	g, err2 := strconv.Atoi(gid)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	return imageConfig{spec{"uid": u, "gid": g}, config.Config.Entrypoint, config.Config.Env, config.Config.WorkingDir}
}

func eachFile(t *testing.T, r io.Reader, fn func(*tar.Header, io.Reader)) {
	t.Helper()
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		fn(h, in)
	}
}
