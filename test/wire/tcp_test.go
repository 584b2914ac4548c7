package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// eachKind tries something of a Service with a backend of each kind, in both families, at once.
func eachKind(try func(f family, k kind, to netip.AddrPort) error) error {
	var all errgroup.Group
	for _, f := range families {
		for _, k := range kinds {
			all.Go(func() error {
				if err := try(f, k, f.frontend(k)); err != nil {
					return fmt.Errorf("%s, %s: %w", f.name, k, err)
				}
				return nil
			})
		}
	}
	return all.Wait()
}

// download has a server send much, and end.
func download(m machine, to netip.AddrPort, size int) error {
	c, err := dial(m, "tcp", fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint32([]byte{askBulk}, uint32(size))); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err == nil && n != int64(size) {
		err = fmt.Errorf("%d bytes came, want %d", n, size)
	}
	return err
}

// upload sends much to a server, ends, and reads how much came.
func upload(m machine, to netip.AddrPort, size int) error {
	c, err := dial(m, "tcp", fresh(to), to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{askCheck}); err != nil {
		return err
	}
	if err := sendBulk(c, size); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != strconv.Itoa(size) {
		err = fmt.Errorf("%s bytes came, want %d", got, size)
	}
	return err
}

// dialAgain connects from a port whose former connection may not be gone from its own kernel yet.
func dialAgain(m machine, from, to netip.AddrPort) (c net.Conn, err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err = dial(m, "tcp", from, to); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return c, err
		}
	}
	return nil, err
}

// tryEnds ends connections in all ways that there are.
func tryEnds(m machine, to netip.AddrPort) error {
	for _, way := range []struct {
		name string
		ends func(c *net.TCPConn) error
	}{
		{"the server ends", func(c *net.TCPConn) error {
			if _, err := c.Write([]byte{askGoodby}); err != nil {
				return err
			}
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				return fmt.Errorf("read %d, %w; want the end", n, err)
			}
			return nil
		}},
		{"the server resets", func(c *net.TCPConn) error {
			if _, err := c.Write([]byte{askReset}); err != nil {
				return err
			}
			if n, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				return fmt.Errorf("read %d, %w; want a reset", n, err)
			}
			return nil
		}},
		{"the client resets", func(c *net.TCPConn) error {
			_, err := ask(c, askWho)
			return errors.Join(err, c.SetLinger(0))
		}},
		{"the client ends", func(c *net.TCPConn) error { return echo(c, 100) }},
	} {
		// A second connection from the same port is another one, however the first one has ended.
		from := fresh(to)
		for i := range 2 {
			c, err := dialAgain(m, from, to)
			if err != nil {
				return fmt.Errorf("%s, connection %d from %s: %w", way.name, i+1, from, err)
			}
			from = addrPort(c.LocalAddr())
			err = errors.Join(way.ends(c.(*net.TCPConn)), c.Close())
			if err != nil {
				return fmt.Errorf("%s, connection %d from %s: %w", way.name, i+1, from, err)
			}
			if way.name == "the client ends" {
				break // its port waits for a minute, by its own kernel's rule
			}
		}
	}
	return nil
}

func TestTCPCarriesBulkAndAllWaysToEnd(t *testing.T) {
	b := newBench(t)
	b.serve(t)
	b.watch(t)
	for _, tc := range []struct {
		name string
		on   bool
		off  []uint32
		bulk int
	}{
		{"with all offloads", true, []uint32{setRxChecksum}, 20 << 20},
		{"with segmentation by software", false, []uint32{setTSO, setGRO}, 1 << 20},
		{"with complete checksums", false, []uint32{setTxChecksum, setRxChecksum}, 1 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.offloads(t, tc.on, tc.off...)
			must(t, b.tryAll(b.client, everyAddress))
			must(t, eachKind(func(_ family, _ kind, to netip.AddrPort) error { return tryEnds(b.client, to) }))
			must(t, eachKind(func(_ family, _ kind, to netip.AddrPort) error { return download(b.client, to, tc.bulk) }))
			must(t, eachKind(func(_ family, _ kind, to netip.AddrPort) error { return upload(b.client, to, tc.bulk) }))
		})
	}
}
