package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	entrypoint = "/usr/bin/firsthop"
	source     = "https://github.com/firsthop/firsthop"
	ownLicense = "Apache-2.0 AND (BSD-2-Clause OR GPL-2.0-only)" // the second part is that of the BPF programs
	// user is nobody in particular. init needs root, which its manifest says; what only looks or talks to the API server doesn't.
	user = "65532:65532"

	sbomType = "application/spdx+json"
	refName  = "org.opencontainers.image.ref.name"
)

// Config is all that an image depends on.
type Config struct {
	Name     string            // without a tag
	Version  string            // as the binaries say it
	Revision string            // the commit
	Created  time.Time         // of the commit: whatever has a time in the image, has this one
	Binaries map[string]string // files by architecture, as Go calls it
	Licenses []string          // files; their contents and last names are taken

	ThirdParty []byte // the licenses of what the binaries are linked with: licenses.ThirdParty
}

// Image is an image for several architectures with a bill of materials for each.
type Image struct {
	Tag       string
	Digest    v1.Hash // of the index
	Platforms []Platform

	name  string
	index v1.ImageIndex
}

// Platform is the image for one architecture.
type Platform struct {
	Name   string // as linux/amd64
	Digest v1.Hash
	Size   int64  // of the layer, compressed
	SBOM   []byte // SPDX 2.3, JSON
}

// Build makes an image. It changes nothing.
func Build(c Config) (*Image, error) {
	switch {
	case c.Name == "" || c.Version == "" || c.Revision == "":
		return nil, errors.New("an image needs a name, a version and a revision")
	case c.Created.Unix() <= 0:
		return nil, errors.New("an image needs the time of its commit (-source-date-epoch): without one it could not be made again")
	case len(c.ThirdParty) == 0:
		return nil, errors.New("an image needs the licenses of what its binaries are linked with (-repository)")
	case len(c.Binaries) == 0:
		return nil, errors.New("an image needs a binary (-binary amd64=FILE)")
	}
	labels := map[string]string{
		"org.opencontainers.image.title":         "firsthop",
		"org.opencontainers.image.description":   "Makes the API server's Service IP work on a Kubernetes node by eBPF, before anything else needs it",
		"org.opencontainers.image.version":       c.Version,
		"org.opencontainers.image.revision":      c.Revision,
		"org.opencontainers.image.source":        source,
		"org.opencontainers.image.url":           source,
		"org.opencontainers.image.documentation": source + "/blob/main/docs/container.md",
		"org.opencontainers.image.licenses":      ownLicense,
		"org.opencontainers.image.vendor":        "firsthop",
		"org.opencontainers.image.created":       c.Created.Format(time.RFC3339),
	}
	i := &Image{Tag: tag(c.Version), name: c.Name}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	var boms []mutate.IndexAddendum
	for _, arch := range slices.Sorted(maps.Keys(c.Binaries)) {
		img, p, err := c.platform(arch, labels)
		if err != nil {
			return nil, fmt.Errorf("make the image for %s: %w", arch, err)
		}
		bom, err := attach(p, img, c.Created)
		if err != nil {
			return nil, fmt.Errorf("attach the bill of materials for %s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: arch, Variant: variant(arch)}, MediaType: types.OCIManifestSchema1,
		}})
		boms = append(boms, bom)
		i.Platforms = append(i.Platforms, p)
	}
	index = mutate.AppendManifests(index, boms...)
	i.index = mutate.Annotations(index, labels).(v1.ImageIndex)
	var err error
	i.Digest, err = i.index.Digest()
	return i, err
}

// variant is what runtimes call an architecture's version where there is more than one.
func variant(arch string) string {
	if arch == "arm64" {
		return "v8"
	}
	return ""
}

// tag makes a tag of a version: semantic versions may have a + in it.
func tag(version string) string {
	return cmp.Or(regexp.MustCompile(`[^A-Za-z0-9_.-]`).ReplaceAllString(version, "-"), "unknown")
}

func (c Config) platform(arch string, labels map[string]string) (v1.Image, Platform, error) {
	binary, err := readBinary(c.Binaries[arch], arch)
	if err != nil {
		return nil, Platform{}, err
	}
	layer, err := newLayer(binary.data, c)
	if err != nil {
		return nil, Platform{}, err
	}
	img, err := mutate.Append(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: v1.Time{Time: c.Created}, CreatedBy: "firsthop's deploy/build/image", Comment: "one static binary"},
	})
	if err != nil {
		return nil, Platform{}, err
	}
	img, err = mutate.ConfigFile(img, c.configFile(img, arch, labels))
	if err != nil {
		return nil, Platform{}, err
	}
	img = mutate.Annotations(img, labels).(v1.Image)
	p := Platform{Name: "linux/" + arch}
	if p.Digest, err = img.Digest(); err != nil {
		return nil, p, err
	}
	if p.Size, err = layer.Size(); err != nil {
		return nil, p, err
	}
	p.SBOM, err = newSBOM(c, arch, binary)
	return img, p, err
}

func (c Config) configFile(img v1.Image, arch string, labels map[string]string) *v1.ConfigFile {
	had, err := img.ConfigFile()
	if err != nil {
		had = &v1.ConfigFile{} // it was made above, in memory
	}
	return &v1.ConfigFile{
		Architecture: arch, OS: "linux", Variant: variant(arch),
		Created: v1.Time{Time: c.Created}, History: had.History, RootFS: had.RootFS,
		Config: v1.Config{
			User: user, Entrypoint: []string{entrypoint}, Env: []string{"PATH=/usr/bin"}, WorkingDir: "/", Labels: labels,
		},
	}
}

// attach makes the bill of materials an artifact of its own that refers to the image: registries list it among the
// image's referrers. Beside the images in the index it has a platform that no machine is of, as BuildKit's
// attestations have, or else a runtime might take it for an image of its own platform.
func attach(p Platform, img v1.Image, created time.Time) (mutate.IndexAddendum, error) {
	subject, err := partial.Descriptor(img)
	if err != nil {
		return mutate.IndexAddendum{}, err
	}
	subject.Annotations, subject.Platform, subject.ArtifactType = nil, nil, ""
	base := mutate.MediaType(mutate.ConfigMediaType(empty.Image, sbomType), types.OCIManifestSchema1)
	artifact, err := mutate.Append(base, mutate.Addendum{
		Layer: static.NewLayer(p.SBOM, sbomType), MediaType: sbomType,
		Annotations: map[string]string{"org.opencontainers.image.title": sbomName(p.Name)},
	})
	if err != nil {
		return mutate.IndexAddendum{}, err
	}
	artifact = mutate.Annotations(artifact, map[string]string{
		"org.opencontainers.image.created": created.Format(time.RFC3339),
	}).(v1.Image)
	artifact = mutate.Subject(artifact, *subject).(v1.Image)
	return mutate.IndexAddendum{Add: artifact, Descriptor: v1.Descriptor{
		MediaType: types.OCIManifestSchema1, ArtifactType: sbomType,
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{
			"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": p.Digest.String(),
		},
	}}, nil
}
