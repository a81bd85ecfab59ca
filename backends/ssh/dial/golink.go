package dial

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"launcher/internal/errs"
)

// goLink is a connection on which this process speaks SSH itself.
type goLink struct {
	s      *settings
	client *ssh.Client
	conn   *watched
	ended  chan struct{}
	once   sync.Once
	why    error
}

// watched is a net.Conn that knows when it last heard something.
type watched struct {
	net.Conn
	heard atomic.Int64 // unix nanoseconds
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

func newGoLink(s *settings, client *ssh.Client, conn *watched, every time.Duration, count int) *goLink {
	l := &goLink{s: s, client: client, conn: conn, ended: make(chan struct{})}
	go func() { l.end(client.Wait()) }()
	go l.keepAlive(every, count)
	return l
}

func (l *goLink) done() <-chan struct{} { return l.ended }
func (l *goLink) err() error            { return l.why }
func (l *goLink) close()                { l.end(errClosed(l.s.alias)) }

func (l *goLink) end(err error) {
	l.once.Do(func() {
		if ReasonOf(err) == "" {
			err = fail(LinkDead, l.s.alias, err, "%s: the connection broke", l.s.alias)
		}
		l.why = err
		close(l.ended)
		// The socket first: what is left to say may find no room in it, and closing waits.
		_ = l.conn.Close()
		_ = l.client.Close()
	})
}

// keepAlive asks a host that has been silent for a while whether it is there, and ends a
// connection on which nothing at all came for count times as long.
func (l *goLink) keepAlive(every time.Duration, count int) {
	t := time.NewTicker(every)
	defer t.Stop()
	asked := make(chan struct{}, 1)
	for {
		select {
		case <-l.ended:
			return
		case <-t.C:
		}
		silent := time.Since(time.Unix(0, l.conn.heard.Load()))
		if silent >= every*time.Duration(count) {
			l.end(fail(LinkDead, l.s.alias, nil, "%s: no sign of life for %s", l.s.alias, silent.Round(100*time.Millisecond)))
			return
		}
		if silent < every {
			continue
		}
		select {
		case asked <- struct{}{}:
			go func() {
				defer func() { <-asked }()
				_, _, _ = l.client.SendRequest("keepalive@openssh.com", true, nil)
			}()
		default: // the last question has not been answered
		}
	}
}

// start opens a session. What the host is asked cannot be called off, so that a call whose
// ctx ends leaves it to be closed when the answer comes.
func (l *goLink) start(ctx context.Context, what string, subsystem bool) (*process, error) {
	type answer struct {
		p   *process
		err error
	}
	c := make(chan answer, 1)
	go func() {
		p, err := l.session(what, subsystem)
		c <- answer{p, err}
	}()
	select {
	case a := <-c:
		return a.p, a.err
	case <-ctx.Done():
		go func() {
			if a := <-c; a.p != nil {
				a.p.kill()
			}
		}()
		return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "session on %s", l.s.alias)
	case <-l.ended:
		return nil, l.why
	}
}

func (l *goLink) session(what string, subsystem bool) (*process, error) {
	s, err := l.client.NewSession()
	if err != nil {
		if o, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			switch o.Reason {
			case ssh.ConnectionFailed, ssh.ResourceShortage:
				return nil, errNoRoom
			case ssh.Prohibited:
				return nil, fail(NoSessions, l.s.alias, err, "%s: it lets %s in but starts no session", l.s.alias, l.s.user)
			}
		}
		return nil, l.lost(err)
	}
	in, err1 := s.StdinPipe()
	out, err2 := s.StdoutPipe()
	errOut, err3 := s.StderrPipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		_ = s.Close()
		return nil, l.lost(err)
	}
	if subsystem {
		err = s.RequestSubsystem(what)
	} else {
		err = s.Start(what)
	}
	if err != nil {
		_ = s.Close()
		if l.isDone() || errors.Is(err, io.EOF) { // without an answer, known before the connection's end is
			return nil, l.lost(err)
		}
		if subsystem {
			return nil, fail(NoSubsystem, l.s.alias, err, "%s: it has no %s", l.s.alias, what)
		}
		return nil, fail(NoSessions, l.s.alias, err, "%s: it refuses to run a command", l.s.alias)
	}
	// Nothing in the library ends a reading from here: the host has to confirm, which it does
	// not while the command lives. So all waiting is done by goroutines that we can leave.
	killed := make(chan struct{})
	outEnd, outDone := pump(out)
	errEnd, _ := pump(errOut)
	ended := make(chan error, 1)
	go func() {
		if subsystem { // has no exit status
			<-outDone
			ended <- nil
		} else {
			ended <- s.Wait()
		}
		_ = s.Close()
	}()
	return &process{in: in, out: outEnd, err: errEnd,
		wait: func() (Exit, error) {
			select {
			case err := <-ended:
				return exitOf(err)
			case <-killed:
			}
			select {
			case err := <-ended:
				return exitOf(err)
			case <-time.After(killGrace):
				return Exit{}, errKilled
			}
		},
		kill: sync.OnceFunc(func() {
			_ = s.Signal(ssh.SIGTERM)
			_ = s.Close()
			close(killed)
			time.AfterFunc(killGrace, func() {
				_ = outEnd.CloseWithError(errKilled)
				_ = errEnd.CloseWithError(errKilled)
			})
		})}, nil
}

// killGrace is for the last words of a command that has been told to end.
const killGrace = 500 * time.Millisecond

var errKilled = errors.New("the session was given up")

// pump reads a channel for a reader that may go away; done is closed at its end.
func pump(r io.Reader) (out *io.PipeReader, done chan struct{}) {
	out, in := io.Pipe()
	done = make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(in, r)
		_ = in.CloseWithError(err)
		_, _ = io.Copy(io.Discard, r) // else the other channels of the connection would wait too
	}()
	return out, done
}

func (l *goLink) isDone() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

// lost is the error of a session on a connection that has ended or is about to.
func (l *goLink) lost(err error) error {
	if l.isDone() {
		return l.why
	}
	return fail(LinkDead, l.s.alias, err, "%s: the connection broke", l.s.alias)
}

// signals are the numbers of the names that SSH has for them.
var signals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}

func exitOf(err error) (Exit, error) {
	if err == nil {
		return Exit{}, nil
	}
	e, ok := errors.AsType[*ssh.ExitError](err)
	if !ok {
		return Exit{}, err
	}
	if sig := e.Signal(); sig != "" {
		return Exit{Code: 128 + signals[sig], Signal: sig}, nil
	}
	return Exit{Code: e.ExitStatus()}, nil
}
