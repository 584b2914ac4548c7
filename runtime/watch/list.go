package watch

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// A list as the API server sends it in protobuf, read object by object while it comes: a whole one of 10,000 Services
// would take three times the memory of what is kept of it.
//
//	"k8s\0", runtime.Unknown{2: ServiceList{1: ListMeta, 2: Service, 2: Service, …}}
//
// (k8s.io/apimachinery/pkg/runtime/serializer/protobuf; all lists have their fields so, see the API's generated.proto.)

// errNotProtobuf says that an answer is none of these; it may be JSON.
var errNotProtobuf = errors.New("the list is not in protobuf")

// errPages says that an answer is a part of the list only, which nobody asked for.
var errPages = errors.New("the list comes in pages")

// maxObject is larger than an object can be: etcd takes 1.5 MiB.
const maxObject = 16 << 20

// protobufMagic begins everything that the API server sends in protobuf.
const protobufMagic = "k8s\x00"

// The numbers of fields.
const (
	unknownRaw = 2 // runtime.Unknown
	listMeta   = 1 // of any list
	listItem   = 2 // likewise
	objectMeta = 1 // of any object
)

// unusedMeta are the fields of metav1.ObjectMeta that nobody here uses and that may be large: managedFields are as large
// as all else of an object.
func unusedMeta(field protowire.Number) bool {
	const generateName, ownerReferences, finalizers, managedFields = 2, 13, 14, 17
	return field == generateName || field == ownerReferences || field == finalizers || field == managedFields
}

// object is one of Kubernetes' generated types.
type object interface {
	metav1.Object
	runtime.Object
	Unmarshal([]byte) error
}

// readList reads a list and gives each of its objects, made by newObject, as soon as it has come, without
// unusedMeta. It returns the list's resource version.
func readList(body io.Reader, newObject func() object, each func(object) error) (version string, err error) {
	r := &wireReader{r: bufio.NewReaderSize(body, 64<<10)}
	if magic, err := r.r.Peek(len(protobufMagic)); err != nil || string(magic) != protobufMagic {
		return "", errors.Join(errNotProtobuf, err)
	}
	_, _ = r.r.Discard(len(protobufMagic)) // it was peeked at
	for field, kind := r.tag(); r.err == nil && (field != unknownRaw || kind != protowire.BytesType); field, kind = r.tag() {
		r.skip(kind)
	}
	left := r.uvarint()
	for end := r.read + left; r.err == nil && r.read < end; {
		field, kind := r.tag()
		if kind != protowire.BytesType || field != listMeta && field != listItem {
			r.skip(kind)
			continue
		}
		data := r.bytes()
		if r.err != nil {
			break
		}
		if field == listMeta {
			var meta metav1.ListMeta
			if err := meta.Unmarshal(data); err != nil {
				return "", fmt.Errorf("decode the metadata of a list: %w", err)
			}
			if meta.Continue != "" {
				return "", errPages
			}
			version = meta.ResourceVersion
			continue
		}
		o := newObject()
		if err := r.unmarshal(o, data); err != nil {
			return "", fmt.Errorf("decode an object of a list: %w", err)
		}
		if err := each(o); err != nil {
			return "", err
		}
	}
	if r.err == nil {
		_, r.err = io.Copy(io.Discard, r.r) // a connection whose answer isn't read to its end isn't used again
	}
	if errors.Is(r.err, io.EOF) {
		r.err = io.ErrUnexpectedEOF
	}
	if r.err != nil {
		return "", fmt.Errorf("read the list: %w", r.err)
	}
	if version == "" {
		return "", errors.New("the list has no resource version to watch from")
	}
	return version, nil
}

// wireReader reads protobuf from a stream. After an error it reads nothing.
type wireReader struct {
	r          *bufio.Reader
	read       uint64 // bytes, since the magic
	err        error
	buf        []byte // what bytes gives
	kept, meta []byte // what unmarshal decodes
}

// ReadByte implements io.ByteReader for uvarint.
func (r *wireReader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		r.read++
	}
	return b, err
}

func (r *wireReader) uvarint() (v uint64) {
	if r.err == nil {
		v, r.err = binary.ReadUvarint(r)
	}
	return v
}

func (r *wireReader) tag() (protowire.Number, protowire.Type) {
	return protowire.DecodeTag(r.uvarint())
}

// size reads the length of a field of bytes.
func (r *wireReader) size() uint64 {
	n := r.uvarint()
	if n > maxObject {
		n, r.err = 0, fmt.Errorf("an object of %d bytes", n)
	}
	return n
}

// bytes reads a field of bytes, which are good until the next call.
func (r *wireReader) bytes() []byte {
	n := r.size()
	if uint64(cap(r.buf)) < n {
		r.buf = make([]byte, n+n/4)
	}
	r.buf = r.buf[:n]
	if r.err == nil {
		var got int
		got, r.err = io.ReadFull(r.r, r.buf)
		r.read += uint64(got)
	}
	return r.buf
}

func (r *wireReader) skip(kind protowire.Type) {
	n := uint64(0)
	switch kind {
	case protowire.VarintType:
		r.uvarint()
	case protowire.Fixed64Type:
		n = 8
	case protowire.Fixed32Type:
		n = 4
	case protowire.BytesType:
		n = r.size()
	default:
		r.err = cmp.Or(r.err, fmt.Errorf("a field of type %d", kind))
	}
	if r.err == nil {
		var got int
		got, r.err = r.r.Discard(int(n))
		r.read += uint64(got)
	}
}

// unmarshal decodes an object but for unusedMeta.
func (r *wireReader) unmarshal(o object, data []byte) error {
	r.kept = r.kept[:0]
	err := eachField(data, func(field protowire.Number, kind protowire.Type, whole []byte) (err error) {
		if field != objectMeta || kind != protowire.BytesType {
			r.kept = append(r.kept, whole...)
			return nil
		}
		_, _, tag := protowire.ConsumeTag(whole)
		inner, _ := protowire.ConsumeBytes(whole[tag:])
		r.meta = r.meta[:0]
		err = eachField(inner, func(field protowire.Number, _ protowire.Type, whole []byte) error {
			if !unusedMeta(field) {
				r.meta = append(r.meta, whole...)
			}
			return nil
		})
		r.kept = protowire.AppendBytes(append(r.kept, whole[:tag]...), r.meta)
		return err
	})
	if err != nil {
		return err
	}
	return o.Unmarshal(r.kept)
}

// eachField calls do for each field of a message, which has its tag.
func eachField(message []byte, do func(field protowire.Number, kind protowire.Type, whole []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeField(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := do(field, kind, message[:n]); err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}
