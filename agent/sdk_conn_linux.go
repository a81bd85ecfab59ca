package agent

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// readChunk is read at a time; a longer frame makes the buffer grow to it.
	readChunk = 256 << 10
	// maxUnread bounds what waits for a client that does not read.
	maxUnread = 1 << 30
	// maxLogs bounds the output of workers among that: what does not fit is dropped.
	maxLogs = 1 << 20
)

// sdkConn is the socket of a driver or worker. It is read by a goroutine of its own, and
// written by whoever has something for it, without waiting. Only what the socket does not
// take at once is left to a writer.
type sdkConn struct {
	c   *net.UnixConn
	raw syscall.RawConn

	mu     sync.Mutex
	out    []byte   // not written; guarded by mu
	files  []passed // descriptors in out; guarded by mu
	spare  []byte   // the buffer before; guarded by mu
	going  int      // how much a writer is writing; guarded by mu
	slow   bool     // a writer is at work; guarded by mu
	shut   bool     // guarded by mu
	failed error    // guarded by mu
	logs   logGate  // lines of output that were not sent; guarded by mu
	writer sync.WaitGroup
}

// passed is a descriptor that travels with the byte at an offset of out.
type passed struct {
	at int
	fd int // a copy
}

// newSDKConn takes a connection over.
func newSDKConn(c *net.UnixConn) (*sdkConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	_ = c.SetWriteBuffer(4 << 20)
	return &sdkConn{c: c, raw: raw}, nil
}

// readFrames reads until the end of the connection, giving take all whole frames that are
// there at a time. take must not keep them.
func (c *sdkConn) readFrames(take func(frames []byte) error) error {
	buf, n := make([]byte, readChunk), 0
	for {
		k, err := c.c.Read(buf[n:])
		if err != nil {
			return nil // a reset is an end too
		}
		n += k
		whole, need, err := wholeFrames(buf[:n])
		if err != nil {
			return err
		}
		if whole > 0 {
			if err := take(buf[:whole]); err != nil {
				return err
			}
			n = copy(buf, buf[whole:n])
		}
		switch {
		case need > len(buf): // it grows with what really arrives
			if n == len(buf) {
				buf = append(buf, make([]byte, min(len(buf), need-len(buf)))...)
			}
		case len(buf) > readChunk && n <= readChunk && need <= readChunk:
			buf = append(make([]byte, 0, readChunk), buf[:n]...)[:readChunk]
		}
	}
}

// wholeFrames finds how much of b is whole frames, and how long the frame after them is.
func wholeFrames(b []byte) (whole, need int, err error) {
	for len(b)-whole >= 4 {
		n := binary.LittleEndian.Uint32(b[whole:])
		if n < 4 || n > wire.MaxFrame {
			return whole, 0, errs.New(errs.Corrupt, "a frame of length %d, allowed are 4 to %d", n, wire.MaxFrame)
		}
		if need = int(n) + 4; need > len(b)-whole {
			return whole, need, nil
		}
		whole += need
	}
	return whole, 0, nil
}

// put appends whole frames; copies of the descriptors travel with the first byte.
func (c *sdkConn) put(frames []byte, files ...*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut || c.failed != nil {
		return
	}
	if len(c.out)+len(frames) > maxUnread {
		c.failed = errs.New(errs.Exhausted, "the program does not read what it asked for: %s wait for it", wire.Bytes(int64(len(c.out))))
		c.hangUp()
		return
	}
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			c.failed = errs.Wrap(errs.Exhausted, err, "passing descriptor %s", f.Name())
			c.hangUp()
			return
		}
		c.files = append(c.files, passed{len(c.out), fd})
	}
	c.out = append(c.out, frames...)
}

// waiting is how much is not written.
func (c *sdkConn) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out) + c.going
}

// putFrame appends one frame.
func (c *sdkConn) putFrame(typ uint16, body []byte, files ...*os.File) {
	c.put(wire.AppendFrame(nil, typ, body), files...)
}

// putLog appends a frame of output unless too much waits already; the next that is sent
// says how many lines were left out.
func (c *sdkConn) putLog(lines int, frame func(dropped int) []byte) {
	c.mu.Lock()
	dropped, fits := c.logs.pass(len(c.out)+c.going, lines) // what is being written waits, too
	c.mu.Unlock()
	if fits {
		c.put(frame(dropped))
	}
}

// logGate bounds the output of workers that waits for a reader.
type logGate struct{ dropped int }

// pass reports whether more lines may follow what waits, and how many were left out before
// them.
func (g *logGate) pass(waits, lines int) (dropped int, fits bool) {
	if waits > maxLogs {
		g.dropped += lines
		return 0, false
	}
	dropped, g.dropped = g.dropped, 0
	return dropped, true
}

// flush writes what the socket takes.
func (c *sdkConn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slow || c.shut || len(c.out) == 0 {
		return
	}
	n, err := c.write(c.out, c.files, false)
	switch {
	case n == len(c.out):
		c.cut(n)
		c.out = c.out[:0]
		if cap(c.out) > 1<<20 {
			c.out = nil
		}
	case err == unix.EAGAIN:
		c.cut(n)
		c.slow = true
		c.writer.Go(c.drain)
	default: // the reader sees it too
		c.shut = true
	}
}

// cut takes n written bytes off. mu is held.
func (c *sdkConn) cut(n int) {
	for len(c.files) > 0 && c.files[0].at < n {
		_ = unix.Close(c.files[0].fd)
		c.files = c.files[1:]
	}
	for i := range c.files {
		c.files[i].at -= n
	}
	if n < len(c.out) {
		c.out = append(c.out[:0:0], c.out[n:]...)
	}
}

// drain writes until nothing is left, then ends.
func (c *sdkConn) drain() {
	for {
		c.mu.Lock()
		b, files := c.out, c.files
		c.out, c.files = c.spare[:0], nil
		c.going = len(b)
		if len(b) == 0 || c.shut {
			c.slow, c.spare = false, nil
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		n, err := c.write(b, files, true)
		for _, x := range files {
			_ = unix.Close(x.fd)
		}
		c.mu.Lock()
		if c.spare = b; cap(b) > 1<<20 {
			c.spare = nil
		}
		if err != nil && n < len(b) {
			c.shut = true
		}
		c.mu.Unlock()
	}
}

// write writes b with its descriptors, and gives how much was taken; it waits until all
// is, or not at all.
func (c *sdkConn) write(b []byte, files []passed, wait bool) (n int, err error) {
	for n < len(b) && err == nil {
		end, here := len(b), 0
		var fds []int
		for here < len(files) && files[here].at == n {
			fds = append(fds, files[here].fd)
			here++
		}
		if files = files[here:]; len(files) > 0 {
			end = files[0].at
		}
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		var k int
		werr := c.raw.Write(func(fd uintptr) bool {
			for {
				if k, err = unix.SendmsgN(int(fd), b[n:end], oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != unix.EINTR {
					return !wait || err != unix.EAGAIN
				}
			}
		})
		if werr != nil {
			return n, werr
		}
		if err == nil {
			n += k
		}
	}
	return n, err
}

// hangUp ends the conversation: the reader comes to its end, also when something else
// holds the other side open.
func (c *sdkConn) hangUp() {
	_ = c.c.CloseRead()
	_ = c.c.CloseWrite()
}

// noMore lets the reader come to an end once it has read what is there: the process at
// the other side is dead.
func (c *sdkConn) noMore() { _ = c.c.CloseRead() }

// close is called when nobody reads any more.
func (c *sdkConn) close() {
	c.mu.Lock()
	c.shut = true
	c.mu.Unlock()
	_ = c.c.Close()
	c.writer.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.files {
		_ = unix.Close(x.fd)
	}
	c.files = nil
}
