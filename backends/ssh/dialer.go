package ssh

import (
	"context"
	"io"
	"sync"

	"launcher/backends/ssh/dial"
)

// New makes the backend for the state directory home ($LAUNCHER_HOME).
func New(home string, o dial.Options) *Backend { return newBackend(home, network{dial.New(o)}) }

// network is the real dialer.
type network struct{ *dial.Dialer }

func (n network) Split(text string) (host, user string, port int, err error) {
	t, err := dial.ParseTarget(text)
	return t.Host, t.User, t.Port, err
}

func (n network) Open(ctx context.Context, s site, line string) (channel, error) {
	c, err := n.Dial(ctx, dial.Target{Host: s.Host, User: s.User, Port: s.Port, Jump: s.Jump, Identity: s.Identity,
		KnownHosts: s.KnownHosts, Config: s.Config, Transport: s.Transport})
	if err != nil {
		return nil, err
	}
	st, err := c.Open(ctx, line)
	if err != nil {
		c.Close()
		return nil, err
	}
	return &command{Stream: st, conn: c}, nil
}

// command is a command on a host and the share in its connection.
type command struct {
	*dial.Stream
	conn io.Closer
	once sync.Once
	err  error
}

// Close ends both; whoever holds an end of it may call it.
func (s *command) Close() error {
	s.once.Do(func() {
		s.err = s.Stream.Close()
		if err := s.conn.Close(); s.err == nil {
			s.err = err
		}
	})
	return s.err
}
