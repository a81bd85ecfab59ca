package host

import (
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"launcher/internal/errs"
)

// lend asks a host to give its binary, from an offset on, to the first who comes with the
// secret. Nobody need be kept from reading it: the secret only keeps strangers from taking
// the turn of the one it is for, who checks the sum of what comes.
type lend struct {
	Secret   string
	At       int64
	From, To int // ports to choose from, 0 any
}

type lent struct{ Port int }

const (
	// lendWait is how long the one it is for may take to come, lendGreet to say the secret,
	// and lendStall to take the next piece.
	lendWait  = 20 * time.Second
	lendGreet = 5 * time.Second
	lendStall = 20 * time.Second
	lendPiece = 1 << 20
	// maxGuests is how many may come until the right one has.
	maxGuests = 16
)

// lend opens a port for one copy; what it starts ends with ctx, which is the session's.
func (s *Server) lend(ctx context.Context, m lend) (lent, error) {
	if len(m.Secret) < 16 || len(m.Secret) > 64 || m.At < 0 || m.From < 0 || m.To < m.From || m.To > 65535 {
		return lent{}, errs.New(errs.Invalid, "no copy can be given so")
	}
	f, err := os.Open(s.binary)
	if err != nil {
		return lent{}, errs.Wrap(errs.Unavailable, err, "the own binary")
	}
	var ln net.Listener
	for p := m.From; p <= m.To; p++ {
		var lc net.ListenConfig
		if ln, err = lc.Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(p))); err == nil {
			break
		}
	}
	if err != nil {
		f.Close()
		return lent{}, errs.Wrap(errs.Unavailable, err, "a port to give the binary at")
	}
	go func() {
		defer f.Close()
		serveLoan(ctx, ln, f, m)
	}()
	return lent{ln.Addr().(*net.TCPAddr).Port}, nil
}

// serveLoan gives f once and returns when all that came has gone.
func serveLoan(ctx context.Context, ln net.Listener, f *os.File, m lend) {
	ctx, cancel := context.WithTimeout(ctx, lendWait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	var once sync.Once
	for range maxGuests {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			if !knows(conn, m.Secret) {
				return
			}
			once.Do(func() {
				ln.Close()
				_ = give(conn, f, m.At)
			})
		})
	}
}

// knows reads a line that must be the secret.
func knows(conn net.Conn, secret string) bool {
	_ = conn.SetReadDeadline(time.Now().Add(lendGreet))
	line := make([]byte, len(secret)+1)
	_, err := io.ReadFull(conn, line)
	return err == nil && subtle.ConstantTimeCompare(line, []byte(secret+"\n")) == 1
}

// give sends the rest of a file; whoever takes nothing for a while gets no more.
func give(conn net.Conn, f *os.File, at int64) error {
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return err
	}
	for {
		_ = conn.SetWriteDeadline(time.Now().Add(lendStall))
		if _, err := io.CopyN(conn, f, lendPiece); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// Lend has the host give its binary from an offset on, once, to whoever comes to the port
// with the secret and a line end.
func (c *Client) Lend(ctx context.Context, secret string, at int64, from, to int) (port int, err error) {
	l, err := call[lent](ctx, c, msgLend, lend{secret, at, from, to})
	if err == nil && (l.Port < 1 || l.Port > 65535) {
		err = errs.New(errs.Corrupt, "host %s names port %d", c.name, l.Port)
	}
	return l.Port, err
}
