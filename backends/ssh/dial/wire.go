package dial

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"launcher/internal/errs"
)

// via gives the connection to the last jump host of s, nil where there is none. It is had
// before a place among those being connected is taken, for it needs one itself.
func (d *Dialer) via(ctx context.Context, s *settings) (*Conn, error) {
	if len(s.jump) == 0 {
		return nil, nil
	}
	t, err := hopTarget(s.t, s.jump)
	if err != nil {
		return nil, err
	}
	return d.Dial(ctx, t)
}

// wire connects to the port of the host: through its jump host, by its proxy command, or
// directly.
func (d *Dialer) wire(ctx context.Context, s *settings, jump *Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	addr := net.JoinHostPort(s.host, strconv.Itoa(s.port))
	switch {
	case jump != nil:
		return forward(ctx, s, jump, addr)
	case s.proxyCommand != "":
		return proxy(s)
	}
	var n net.Dialer
	c, err := n.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, wireError(s, addr, err)
	}
	return c, nil
}

func wireError(s *settings, addr string, err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		f := fail(Unresolved, s.alias, nil, "%s: the name %s is not known", s.alias, s.host)
		if dns.Temporary() || dns.IsTimeout { // whoever knows names is away: a later try may do
			f.Err.Kind = errs.Unavailable
		}
		return f.Hint("check the name, or give HostName in ssh_config")
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(Refused, s.alias, nil, "%s: nothing listens on %s", s.alias, addr).Hint("is sshd running there, and is the port right?")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fail(Silent, s.alias, nil, "%s: %s does not answer", s.alias, addr).Hint("is the host up, and may this machine reach it, perhaps through a jump host?")
	case errors.Is(err, context.Canceled):
		return errs.Wrap(errs.Cancelled, err, "connecting to %s", s.alias)
	}
	return fail(Unreachable, s.alias, err, "%s: %s cannot be reached", s.alias, addr)
}

// forward has the jump host connect to addr.
func forward(ctx context.Context, s *settings, jump *Conn, addr string) (net.Conn, error) {
	l, ok := jump.h.first().(*goLink)
	if !ok {
		return nil, fail(NoForward, s.alias, nil, "%s: its jump host is reached by another transport", s.alias)
	}
	c, err := l.client.DialContext(ctx, "tcp", addr)
	if err == nil {
		return c, nil
	}
	if o, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
		at, why := jump.Host(), strings.ToLower(o.Message)
		switch {
		case o.Reason == ssh.Prohibited:
			return nil, fail(NoForward, at, nil, "%s: the jump host %s does not forward to %s", s.alias, at, addr).
				Hint("its sshd has to say AllowTcpForwarding yes (or local) and PermitOpen %s", addr)
		case strings.Contains(why, "refused"):
			return nil, fail(Refused, s.alias, nil, "%s: nothing listens on %s, says the jump host %s", s.alias, addr, at)
		case strings.Contains(why, "not known"), strings.Contains(why, "resolve"), strings.Contains(why, "resolution"):
			return nil, fail(Unresolved, s.alias, nil, "%s: the jump host %s does not know the name %s", s.alias, at, s.host)
		}
		return nil, fail(Unreachable, s.alias, nil, "%s: the jump host %s cannot reach %s: %s", s.alias, at, addr, printable(o.Message))
	}
	if e := jump.Err(); e != nil {
		return nil, e
	}
	return nil, wireError(s, addr, err)
}

// piped is a proxy command as a connection.
type piped struct {
	io.Reader
	io.WriteCloser
	cmd   *exec.Cmd
	errs  tail
	once  sync.Once
	ended chan struct{}
}

// proxy starts the ProxyCommand.
func proxy(s *settings) (net.Conn, error) {
	line, err := s.expand(s.proxyCommand)
	if err != nil {
		return nil, err
	}
	p := &piped{cmd: exec.Command("/bin/sh", "-c", "exec "+line), ended: make(chan struct{})}
	p.cmd.Stderr = &p.errs
	p.cmd.SysProcAttr = ownGroup()
	p.cmd.WaitDelay = time.Second
	var err1, err2 error
	p.WriteCloser, err1 = p.cmd.StdinPipe()
	p.Reader, err2 = p.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, p.cmd.Start()); err != nil {
		return nil, fail(Unreachable, s.alias, err, "%s: its ProxyCommand does not start", s.alias)
	}
	return p, nil
}

// Close ends the command and all it started.
func (p *piped) Close() error {
	p.once.Do(func() {
		_ = p.WriteCloser.Close()
		killGroup(p.cmd.Process.Pid)
		_ = p.cmd.Wait()
		close(p.ended)
	})
	<-p.ended
	return nil
}

func (p *piped) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p *piped) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p *piped) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (p *piped) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (p *piped) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }
