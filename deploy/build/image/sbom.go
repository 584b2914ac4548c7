package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
)

// What follows is the part of SPDX 2.3 that is used: https://spdx.github.io/spdx-spec/v2.3

type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string            `json:"SPDXID"`
	Name             string            `json:"name"`
	Version          string            `json:"versionInfo"`
	Supplier         string            `json:"supplier,omitempty"`
	Purpose          string            `json:"primaryPackagePurpose"`
	Download         string            `json:"downloadLocation"`
	FilesAnalyzed    bool              `json:"filesAnalyzed"`
	LicenseConcluded string            `json:"licenseConcluded"`
	LicenseDeclared  string            `json:"licenseDeclared"`
	Copyright        string            `json:"copyrightText"`
	Checksums        []spdxChecksum    `json:"checksums,omitempty"`
	References       []spdxExternalRef `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxExternalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const (
	spdxRoot  = "SPDXRef-DOCUMENT"
	spdxNone  = "NOASSERTION"
	spdxOwnID = "SPDXRef-firsthop"
)

// sbomName is the name of the file with a platform's bill of materials.
func sbomName(platform string) string {
	return "sbom-" + strings.ReplaceAll(platform, "/", "-") + ".spdx.json"
}

// newSBOM lists what a binary is made of, by what the linker wrote into it: its modules and the Go release, whose
// standard library is in it too.
func newSBOM(c Config, arch string, b binary) ([]byte, error) {
	sum := sha256.Sum256(b.data)
	digest := hex.EncodeToString(sum[:])
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: spdxRoot,
		Name: fmt.Sprintf("firsthop %s for linux/%s", c.Version, arch),
		// Unique for what it describes, and the same each time.
		Namespace: source + "/sbom/" + digest,
		Creation:  spdxCreation{Created: c.Created.Format(time.RFC3339), Creators: []string{"Tool: firsthop-deploy-build-image"}},
	}
	own := goPackage(spdxOwnID, &debug.Module{Path: b.info.Main.Path, Version: c.Version})
	own.Purpose, own.LicenseConcluded, own.LicenseDeclared = "APPLICATION", ownLicense, ownLicense
	own.Supplier, own.Download = "Organization: firsthop", "git+"+source+"@"+c.Revision
	own.Checksums = []spdxChecksum{{"SHA256", digest}} // of the file in the image
	doc.Packages = append(doc.Packages, own)
	doc.Relationships = append(doc.Relationships, spdxRelationship{spdxRoot, "DESCRIBES", spdxOwnID})

	parts := append([]*debug.Module{{Path: "stdlib", Version: strings.TrimPrefix(b.info.GoVersion, "go")}}, b.info.Deps...)
	for n, m := range parts {
		if m.Replace != nil {
			m = m.Replace
		}
		p := goPackage(fmt.Sprintf("SPDXRef-module-%d", n), m)
		if m.Path == "stdlib" {
			p.LicenseConcluded, p.LicenseDeclared = "BSD-3-Clause", "BSD-3-Clause"
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, spdxRelationship{spdxOwnID, "DEPENDS_ON", p.ID})
	}
	return json.MarshalIndent(doc, "", " ")
}

func goPackage(id string, m *debug.Module) spdxPackage {
	return spdxPackage{
		ID: id, Name: m.Path, Version: m.Version, Purpose: "LIBRARY",
		Download: spdxNone, LicenseConcluded: spdxNone, LicenseDeclared: spdxNone, Copyright: spdxNone,
		References: []spdxExternalRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + m.Version}},
	}
}
