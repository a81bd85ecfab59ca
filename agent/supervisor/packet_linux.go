package supervisor

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// socketPair makes the socket between supervisor and agent.
func socketPair() (ours, theirs int, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, errs.Wrap(errs.Exhausted, err, "the socket between supervisor and agent")
	}
	return p[0], p[1], nil
}

// packet is one message to be sent. It owns the file of a long body, and with own set
// its descriptors too. With lent set they are the caller's, open until send returns: a
// packet that has to wait gets copies.
type packet struct {
	data []byte
	fds  []int
	own  bool
	lent bool
	file *os.File
}

func newPacket(typ uint16, seq uint32, v any, lent bool, fds []int) (packet, error) {
	body := wire.Marshal(v)
	p := packet{fds: fds, lent: lent}
	var flags uint16
	if len(body) > maxInline {
		f, err := shm.CreateFile("message")
		if err != nil {
			return p, err
		}
		if _, err := f.Write(body); err != nil {
			f.Close()
			return p, errs.Wrap(errs.Exhausted, err, "a message of %d bytes", len(body))
		}
		p.file, flags, body = f, flagInFile, nil
	}
	p.data = make([]byte, 0, packetHeader+len(body))
	p.data = binary.LittleEndian.AppendUint16(p.data, typ)
	p.data = binary.LittleEndian.AppendUint16(p.data, flags)
	p.data = binary.LittleEndian.AppendUint32(p.data, seq)
	p.data = append(p.data, body...)
	return p, nil
}

func (p packet) done() {
	if p.file != nil {
		p.file.Close()
	}
	if p.own {
		for _, fd := range p.fds {
			unix.Close(fd)
		}
	}
}

// sender writes packets without ever blocking its callers: what the socket does not
// take at once waits in a queue that a goroutine empties.
type sender struct {
	fd      int
	mu      sync.Mutex
	queue   []packet
	broken  bool
	writers sync.WaitGroup
}

// send sends a message whose descriptors outlive the connection.
func (s *sender) send(typ uint16, seq uint32, v any, fds ...int) error {
	return s.sendPacket(newPacket(typ, seq, v, false, fds))
}

// sendLent sends a message with descriptors that the caller may close afterwards.
func (s *sender) sendLent(typ uint16, seq uint32, v any, fds []int) error {
	return s.sendPacket(newPacket(typ, seq, v, true, fds))
}

// copied gives a lent packet descriptors of its own.
func (p packet) copied() (packet, error) {
	var own []int
	for _, fd := range p.fds {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(own)
			return p, errs.Wrap(errs.Exhausted, err, "copying descriptor %d", fd)
		}
		own = append(own, n)
	}
	p.fds, p.lent, p.own = own, false, true
	return p, nil
}

func (s *sender) sendPacket(p packet, err error) error {
	if err != nil {
		p.done()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		p.done()
		return errs.New(errs.Lost, "the other end of the supervisor's socket is gone")
	}
	waits := len(s.queue) > 0
	if !waits {
		err := sendPacket(s.fd, p, unix.MSG_DONTWAIT)
		if err == nil {
			p.done()
			return nil
		}
		if !again(err) {
			p.done()
			s.broken = true
			return errs.Wrap(errs.Lost, err, "the other end of the supervisor's socket is gone")
		}
	}
	if p.lent {
		if p, err = p.copied(); err != nil {
			p.done()
			return err
		}
	}
	s.queue = append(s.queue, p)
	if !waits {
		s.writers.Go(s.drain)
	}
	return nil
}

// drain empties the queue, then ends. A packet stays in the queue until it is sent, so
// that send keeps the order.
func (s *sender) drain() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.broken {
			for _, p := range s.queue {
				p.done()
			}
			s.queue = nil
			s.mu.Unlock()
			return
		}
		p := s.queue[0]
		s.mu.Unlock()
		err := sendPacket(s.fd, p, 0)
		if err != nil && again(err) { // too many descriptors are on their way
			time.Sleep(time.Millisecond)
			continue
		}
		s.mu.Lock()
		p.done()
		s.queue = s.queue[1:]
		s.broken = s.broken || err != nil
		s.mu.Unlock()
	}
}

// stop makes every further send fail and waits for the writer. The socket must have
// been shut down before, or its other end be closed.
func (s *sender) stop() {
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	s.writers.Wait()
}

func sendPacket(fd int, p packet, flags int) error {
	var oob []byte
	fds := p.fds
	if p.file != nil {
		fds = append(fds[:len(fds):len(fds)], int(p.file.Fd()))
	}
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(fd, p.data, oob, nil, flags|unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func again(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ETOOMANYREFS) || errors.Is(err, unix.ENOBUFS)
}

// message is a received packet. Its descriptors belong to whoever takes it.
type message struct {
	typ  uint16
	seq  uint32
	body []byte // valid until the next receive
	fds  []int
}

func (m *message) closeFDs() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// receiver reads packets with plain blocking calls, which is quicker than a detour
// through the network poller: the thread that serves orders wakes up in the kernel.
type receiver struct {
	fd       int
	buf, oob []byte
}

func newReceiver(fd int) *receiver {
	return &receiver{fd: fd, buf: make([]byte, packetHeader+maxInline), oob: make([]byte, unix.CmsgSpace(4*(shm.MaxFDs+1)))}
}

// next reads a packet; io.EOF means that the other end is gone.
func (r *receiver) next() (m message, err error) {
	var n, oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(r.fd, r.buf, r.oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || n == 0 {
		return m, io.EOF // a reset is an end too
	}
	if m.fds, err = parseFDs(r.oob[:oobn]); err == nil && flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		err = errs.New(errs.Exhausted, "a message of the supervisor's socket was cut: out of descriptors?")
	}
	if err == nil && n < packetHeader {
		err = errs.New(errs.Corrupt, "a packet of %d bytes", n)
	}
	if err != nil {
		m.closeFDs()
		return m, err
	}
	m.typ, m.seq, m.body = binary.LittleEndian.Uint16(r.buf), binary.LittleEndian.Uint32(r.buf[4:]), r.buf[packetHeader:n]
	if binary.LittleEndian.Uint16(r.buf[2:])&flagInFile != 0 {
		if m.body, err = m.takeBody(); err != nil {
			m.closeFDs()
		}
	}
	return m, err
}

// takeBody reads the file that holds a long body, the last descriptor.
func (m *message) takeBody() ([]byte, error) {
	if len(m.fds) == 0 {
		return nil, errs.New(errs.Corrupt, "a packet without the file of its body")
	}
	f := os.NewFile(uintptr(m.fds[len(m.fds)-1]), "message")
	m.fds = m.fds[:len(m.fds)-1]
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() > maxBody {
		return nil, errs.New(errs.Corrupt, "a body of more than %d bytes", maxBody)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

func parseFDs(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, c := range msgs {
		if c.Header.Level == unix.SOL_SOCKET && c.Header.Type == unix.SCM_RIGHTS {
			got, err := unix.ParseUnixRights(&c)
			if err != nil {
				return fds, err
			}
			fds = append(fds, got...)
		}
	}
	return fds, nil
}
