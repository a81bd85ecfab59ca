package agent

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/shm/objects"
	"launcher/wire"
)

// unixPair is a connected pair of sockets.
func unixPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	var out [2]*net.UnixConn
	for i, fd := range p {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		must(t, err)
		out[i] = c.(*net.UnixConn)
		_ = out[i].SetDeadline(time.Now().Add(bound))
		t.Cleanup(func() { out[i].Close() })
	}
	return out[0], out[1]
}

func connPair(t testing.TB) (*sdkConn, *net.UnixConn) {
	t.Helper()
	a, b := unixPair(t)
	c, err := newSDKConn(a)
	must(t, err)
	t.Cleanup(c.close)
	return c, b
}

// TestFramesArriveWhole: however they are cut, frames come out whole and in order.
func TestFramesArriveWhole(t *testing.T) {
	c, peer := connPair(t)
	var sent []byte
	for _, n := range []int{0, 1, 70_000, readChunk, 3 << 20, 5, wire.MaxFrame - 4, 9} {
		sent = wire.AppendFrame(sent, 7, bytes.Repeat([]byte{byte(n)}, n))
	}
	go func() {
		for b := sent; len(b) > 0; {
			n := min(len(b), 100_003)
			if _, err := peer.Write(b[:n]); err != nil {
				t.Error(err)
			}
			b = b[n:]
		}
		peer.Close()
	}()
	var got []byte
	must(t, c.readFrames(func(b []byte) error {
		if whole, _, _ := wholeFrames(b); whole != len(b) {
			t.Fatalf("%d of %d bytes are whole frames", whole, len(b))
		}
		got = append(got, b...)
		return nil
	}))
	if !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes of %d", len(got), len(sent))
	}
}

func TestGarbageFrames(t *testing.T) {
	for _, b := range []string{"\x00\x00\x00\x00", "\x03\x00\x00\x00abc", "GET / HTTP/1.1\r\n\r\n"} {
		c, peer := connPair(t)
		_, err := peer.Write([]byte(b))
		must(t, err)
		if err := c.readFrames(func([]byte) error { t.Error("taken"); return nil }); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

// TestSlowReader: a peer that does not read holds nobody up, gets all in the end, with
// descriptors at their places; output of workers is dropped and counted.
func TestSlowReader(t *testing.T) {
	c, peer := connPair(t)
	f, err := shm.CreateFile("x")
	must(t, err)
	_, err = f.WriteString("hello")
	must(t, err)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	c.put(big)
	c.flush()
	c.put([]byte("F"), f)
	f.Close()
	c.flush()
	c.put(big)
	lines := 0
	for range 3 {
		c.putLog(5, func(dropped int) []byte { lines = dropped; return []byte("log") })
	}
	c.flush()
	var got []byte
	var files []*os.File
	buf := make([]byte, 1<<20)
	for len(got) < 2*len(big)+1 {
		n, fs, err := shm.RecvFDs(peer, buf)
		must(t, err)
		// What was before it may be read together with it.
		if len(fs) > 0 && !bytes.Contains(buf[:n], []byte("F")) {
			t.Errorf("the descriptor came with %.20q", buf[:n])
		}
		got, files = append(got, buf[:n]...), append(files, fs...)
	}
	if want := append(append(append([]byte(nil), big...), 'F'), big...); !bytes.Equal(got, want) || len(files) != 1 {
		t.Fatalf("got %d bytes, %d descriptors", len(got), len(files))
	}
	b := make([]byte, 9)
	if n, _ := files[0].ReadAt(b, 0); string(b[:n]) != "hello" {
		t.Errorf("the descriptor is of %q", b[:n])
	}
	files[0].Close()
	wait(t, "the writer to end", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return !c.slow })
	c.putLog(1, func(dropped int) []byte { lines = dropped; return []byte("log") })
	c.flush()
	if _, err := io.ReadFull(peer, b[:3]); err != nil || string(b[:3]) != "log" || lines != 15 {
		t.Errorf("%q, %d lines dropped, %v", b[:3], lines, err)
	}
}

// TestManyExtents: room that is free in very many pieces is told of in several frames.
func TestManyExtents(t *testing.T) {
	for _, n := range []int{0, 1, maxExtents, wire.MaxFrame/24 + 1} {
		b, got, frames := extents(make([]objects.Extent, n)), 0, 0
		for len(b) > 0 {
			size := int(binary.LittleEndian.Uint32(b))
			if size > wire.MaxFrame {
				t.Fatalf("a frame of %d bytes", size)
			}
			frames++
			got += int(binary.LittleEndian.Uint32(b[12:]))
			b = b[size+4:]
		}
		if got != n || frames == 0 {
			t.Errorf("of %d extents %d were told in %d frames", n, got, frames)
		}
	}
}
