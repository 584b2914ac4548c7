package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
)

// Release reads what `uname -r` will say from a kernel image: a bzImage by its header, any other uncompressed image by
// the banner in it.
func Release(image string) (string, error) {
	data, err := os.ReadFile(image)
	if err != nil {
		return "", err
	}
	release, ok := bzImageRelease(data)
	if !ok {
		release, ok = bannerRelease(data)
	}
	if !ok {
		return "", fmt.Errorf("find the release of %s: neither a bzImage nor an uncompressed image", image)
	}
	return release, nil
}

// bzImageRelease follows the pointer of the x86 boot protocol (2.00) to the version, which ends with a blank or a null.
// https://docs.kernel.org/arch/x86/boot.html
func bzImageRelease(data []byte) (string, bool) {
	const magic, pointer = 0x202, 0x20e
	if len(data) < 0x210 || string(data[magic:magic+4]) != "HdrS" {
		return "", false
	}
	at := int(binary.LittleEndian.Uint16(data[pointer:])) + 0x200
	if at >= len(data) {
		return "", false
	}
	return word(data[at:])
}

func bannerRelease(data []byte) (string, bool) {
	_, rest, ok := bytes.Cut(data, []byte("Linux version "))
	if !ok {
		return "", false
	}
	return word(rest)
}

func word(data []byte) (string, bool) {
	end := bytes.IndexAny(data, " \x00")
	if end <= 0 || end > 64 || strings.Trim(string(data[:1]), "0123456789") != "" {
		return "", false
	}
	return string(data[:end]), true
}
