package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// What Write leaves in its directory, besides a bill of materials for each platform.
const (
	layoutName  = "oci"              // an OCI image layout
	archiveName = "firsthop-oci.tar" // the same in one file
	digestName  = "digest"           // what to pin an image by: NAME:TAG@DIGEST
)

// Write puts the image into a directory, and removes what an earlier one left there.
func (i *Image) Write(dir string) error {
	at := filepath.Join(dir, layoutName)
	if err := os.RemoveAll(at); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := errors.Join(i.writeLayout(at), readable(at)); err != nil {
		return fmt.Errorf("write the image layout: %w", err)
	}
	if err := writeArchive(filepath.Join(dir, archiveName), at); err != nil {
		return fmt.Errorf("write %s: %w", archiveName, err)
	}
	for _, p := range i.Platforms {
		if err := os.WriteFile(filepath.Join(dir, sbomName(p.Name)), p.SBOM, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, digestName), []byte(fmt.Sprintf("%s:%s@%s\n", i.name, i.Tag, i.Digest)), 0o644)
}

// writeLayout writes a layout whose index has one entry, the image for all platforms: podman takes no other.
func (i *Image) writeLayout(dir string) error {
	top, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"index.json": top, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	// The first annotation is the specification's, the second containerd's, which wants the name too.
	return layout.Path(dir).AppendIndex(i.index, layout.WithAnnotations(map[string]string{
		refName: i.Tag, "io.containerd.image.name": i.name + ":" + i.Tag,
	}))
}

// readable gives all of a tree the usual permissions, whatever the umask was.
func readable(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(p, 0o755)
		}
		return os.Chmod(p, 0o644)
	})
}

// writeArchive makes a tar of a layout that depends on nothing but what is in its files.
func writeArchive(file, dir string) (err error) {
	files := make(map[string][]byte)
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		files[path.Clean(filepath.ToSlash(rel))], err = os.ReadFile(p)
		return err
	})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return writeTar(f, files, time.Unix(0, 0))
}
