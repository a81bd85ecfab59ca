package dial

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"launcher/internal/errs"
)

// Conn is the way to a host. It may be used from many goroutines at once. Those that
// Dialed the same host share what is below it, which ends with the last of them.
type Conn struct {
	h     *host
	close sync.Once
}

// process is a command or a subsystem at the far end. Both readers must be drained.
type process struct {
	in       io.WriteCloser
	out, err io.Reader
	wait     func() (Exit, error) // once, when both readers are at their end
	kill     func()               // ends the waiting, and the command if it can be told
}

// link is one connection to a host, of either transport.
type link interface {
	// start runs a command, or asks for a subsystem of that name. errNoRoom says that
	// the host takes no more sessions on this connection now.
	start(ctx context.Context, what string, subsystem bool) (*process, error)
	done() <-chan struct{}
	err() error // why it is done
	close()
}

// errNoRoom is a link's answer where the host refuses one more session (MaxSessions).
var errNoRoom = errors.New("no room for one more session")

// Host is the host as the Target named it.
func (c *Conn) Host() string { return c.h.s.alias }

// User is who we are on it.
func (c *Conn) User() string { return c.h.s.user }

// Done is closed when the connection has ended, be it broken, silent for too long, or closed.
func (c *Conn) Done() <-chan struct{} { return c.h.done }

// Err says why, once Done is closed.
func (c *Conn) Err() error {
	select {
	case <-c.h.done:
		return c.h.err
	default:
		return nil
	}
}

// Close gives the connection up; it ends when all who share it have done so.
func (c *Conn) Close() error {
	c.close.Do(c.h.release)
	return nil
}

// Run runs a command line, as the login shell of the host reads it, to its end. Nil
// streams are empty. The error is about the connection or ctx; a command that fails has
// an Exit.
func (c *Conn) Run(ctx context.Context, command string, stdin io.Reader, stdout, stderr io.Writer) (Exit, error) {
	p, err := c.h.start(ctx, command, false)
	if err != nil {
		return Exit{}, err
	}
	stop := context.AfterFunc(ctx, p.kill)
	go func() { // ends at the latest when the session does: writing fails then
		if stdin != nil {
			_, _ = io.Copy(p.in, stdin)
		}
		_ = p.in.Close()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { drain(stderr, p.err) })
	drain(stdout, p.out)
	wg.Wait()
	exit, err := p.wait()
	switch {
	case !stop(): // also where the command ended well on being told
		return Exit{}, errs.Wrap(errs.Unknown, context.Cause(ctx), "command on %s", c.Host())
	case err != nil:
		return Exit{}, c.broken(err)
	}
	return exit, nil
}

// drain copies all of r, also what w does not want.
func drain(w io.Writer, r io.Reader) {
	if w != nil {
		_, _ = io.Copy(w, r)
	}
	_, _ = io.Copy(io.Discard, r)
}

// broken is the error of a session that ended without an exit status.
func (c *Conn) broken(err error) error {
	if e := c.Err(); e != nil {
		return e
	}
	if ReasonOf(err) != "" {
		return err
	}
	return fail(LinkDead, c.Host(), err, "%s: the session broke off", c.Host())
}

// Stream is the standard input and output of a command on the host.
type Stream struct {
	c     *Conn
	p     *process
	read  sync.Mutex // the library wakes one reader only when a channel ends
	write sync.Mutex // and looks at the end of the input without a lock
	tail  tail
	drain chan struct{} // closed when stderr is at its end
	once  sync.Once
	exit  Exit
	err   error
}

// Open starts a command and gives its standard input and output; they live until Close,
// whatever becomes of ctx.
func (c *Conn) Open(ctx context.Context, command string) (*Stream, error) {
	return c.open(ctx, command, false)
}

func (c *Conn) open(ctx context.Context, what string, subsystem bool) (*Stream, error) {
	p, err := c.h.start(ctx, what, subsystem)
	if err != nil {
		return nil, err
	}
	s := &Stream{c: c, p: p, drain: make(chan struct{})}
	go func() {
		defer close(s.drain)
		_, _ = io.Copy(&s.tail, p.err)
	}()
	return s, nil
}

func (s *Stream) Read(b []byte) (int, error) {
	s.read.Lock()
	defer s.read.Unlock()
	return s.p.out.Read(b)
}

func (s *Stream) Write(b []byte) (int, error) {
	s.write.Lock()
	defer s.write.Unlock()
	return s.p.in.Write(b)
}

// CloseWrite ends the command's standard input.
func (s *Stream) CloseWrite() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.p.in.Close()
}

// Stderr is the end of what the command has written to standard error.
func (s *Stream) Stderr() string { return s.tail.String() }

// Wait drops what is left of the output and says how the command ended.
func (s *Stream) Wait() (Exit, error) {
	s.once.Do(func() {
		_, _ = io.Copy(io.Discard, s)
		<-s.drain
		if s.exit, s.err = s.p.wait(); s.err != nil {
			s.err = s.c.broken(s.err)
		}
	})
	return s.exit, s.err
}

// Close ends the session, and the command if it reads its input or can be told.
func (s *Stream) Close() error {
	if s.write.TryLock() {
		_ = s.p.in.Close()
		s.write.Unlock()
	} else {
		go func() { _ = s.CloseWrite() }() // a write that is held up ends with the session
	}
	s.p.kill()
	go func() { _, _ = s.Wait() }() // gives the session's place back when the host confirms
	return nil
}

// tail keeps the last bytes written to it.
type tail struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	if over := t.b.Len() - tailSize; over > 0 {
		t.b.Next(over)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// SFTP is a client of the host's sftp subsystem; closing it ends its session. Where the
// host has none, the Reason is NoSubsystem.
func (c *Conn) SFTP(ctx context.Context, o ...sftp.ClientOption) (*sftp.Client, error) {
	s, err := c.open(ctx, "sftp", true)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.h.d.o.Timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	client, err := sftp.NewClientPipe(s, s, o...)
	if err == nil {
		return client, nil
	}
	_ = s.Close()
	if e := c.Err(); e != nil {
		return nil, e
	}
	return nil, fail(NoSubsystem, c.Host(), err, "%s: what answers as sftp is none", c.Host())
}

// wait waits for one of: a signal, ctx, a time.
func wait(ctx context.Context, c <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
		return nil
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
