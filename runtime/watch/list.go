package watch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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

// protobufMagic begins all that the API server sends in protobuf.
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
func unusedMeta(field uint64) bool {
	const generateName, ownerReferences, finalizers, managedFields = 2, 13, 14, 17
	return field == generateName || field == ownerReferences || field == finalizers || field == managedFields
}

// The types of fields (https://protobuf.dev/programming-guides/encoding).
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

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
	_, _ = r.r.Discard(len(protobufMagic)) // it was just looked at
	for {
		field, kind, err := r.tag()
		if err != nil {
			return "", unexpected(err) // there is no list without the field below
		}
		if field == unknownRaw && kind == wireBytes {
			break
		}
		if err := r.skip(kind); err != nil {
			return "", unexpected(err)
		}
	}
	left, err := r.uvarint()
	if err != nil {
		return "", unexpected(err)
	}
	for end := r.read + left; r.read < end; {
		field, kind, err := r.tag()
		if err != nil {
			return "", unexpected(err)
		}
		if kind != wireBytes || field != listMeta && field != listItem {
			if err := r.skip(kind); err != nil {
				return "", unexpected(err)
			}
			continue
		}
		data, err := r.bytes()
		if err != nil {
			return "", unexpected(err)
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
	if _, err := io.Copy(io.Discard, r.r); err != nil { // a connection whose answer isn't read to its end isn't used again
		return "", fmt.Errorf("read the list: %w", err)
	}
	if version == "" {
		return "", errors.New("the list has no resource version to watch from")
	}
	return version, nil
}

// unexpected makes an end of input that comes too early an error.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read the list: %w", err)
}

// wireReader reads protobuf.
type wireReader struct {
	r       *bufio.Reader
	read    uint64 // bytes, since the magic
	buf     []byte // what bytes gives
	without []byte // what unmarshal decodes
}

// ReadByte implements io.ByteReader for uvarint.
func (r *wireReader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		r.read++
	}
	return b, err
}

func (r *wireReader) uvarint() (uint64, error) { return binary.ReadUvarint(r) }

func (r *wireReader) tag() (field, kind uint64, err error) {
	t, err := r.uvarint()
	return t >> 3, t & 7, err
}

// bytes reads a field of bytes, which are good until the next call.
func (r *wireReader) bytes() ([]byte, error) {
	n, err := r.uvarint()
	if err != nil {
		return nil, err
	}
	if n > maxObject {
		return nil, fmt.Errorf("an object of %d bytes", n)
	}
	if uint64(cap(r.buf)) < n {
		r.buf = make([]byte, n+n/4)
	}
	r.buf = r.buf[:n]
	got, err := io.ReadFull(r.r, r.buf)
	r.read += uint64(got)
	return r.buf, err
}

func (r *wireReader) skip(kind uint64) error {
	n, err := uint64(0), error(nil)
	switch kind {
	case wireVarint:
		_, err = r.uvarint()
	case wireFixed64:
		n = 8
	case wireFixed32:
		n = 4
	case wireBytes:
		n, err = r.uvarint()
	default:
		err = fmt.Errorf("a field of type %d", kind)
	}
	if err == nil && n > maxObject {
		err = fmt.Errorf("a field of %d bytes", n)
	}
	if err != nil {
		return err
	}
	got, err := r.r.Discard(int(n))
	r.read += uint64(got)
	return err
}

// unmarshal decodes an object but for unusedMeta.
func (r *wireReader) unmarshal(o object, data []byte) error {
	r.without = r.without[:0]
	for rest := data; len(rest) > 0; {
		field, whole, inner, err := nextField(rest)
		if err != nil {
			return err
		}
		rest = rest[len(whole):]
		if field != objectMeta || inner == nil {
			r.without = append(r.without, whole...)
			continue
		}
		size := 0
		if err := eachKept(inner, func(whole []byte) { size += len(whole) }); err != nil {
			return err
		}
		r.without = append(r.without, objectMeta<<3|wireBytes)
		r.without = binary.AppendUvarint(r.without, uint64(size))
		_ = eachKept(inner, func(whole []byte) { r.without = append(r.without, whole...) }) // as before
	}
	return o.Unmarshal(r.without)
}

// eachKept gives each field of an ObjectMeta that is not of unusedMeta.
func eachKept(meta []byte, each func(whole []byte)) error {
	for rest := meta; len(rest) > 0; {
		field, whole, _, err := nextField(rest)
		if err != nil {
			return err
		}
		rest = rest[len(whole):]
		if !unusedMeta(field) {
			each(whole)
		}
	}
	return nil
}

// nextField gives the first field of a message, with its tag (whole) and, if it is of bytes, without (inner; else nil).
func nextField(message []byte) (field uint64, whole, inner []byte, err error) {
	tag, n := binary.Uvarint(message)
	if n <= 0 {
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	size, head := uint64(0), n
	switch tag & 7 {
	case wireVarint:
		_, n = binary.Uvarint(message[head:])
		size = uint64(max(n, 0))
	case wireFixed64:
		size = 8
	case wireFixed32:
		size = 4
	case wireBytes:
		size, n = binary.Uvarint(message[head:])
		head += max(n, 0)
	default:
		return 0, nil, nil, fmt.Errorf("a field of type %d", tag&7)
	}
	if n <= 0 || size > uint64(len(message)-head) {
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	end := head + int(size)
	if tag&7 == wireBytes {
		inner = message[head:end:end]
	}
	return tag >> 3, message[:end], inner, nil
}
