package session

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
)

// Messages of joining and renewing; each is alone on its connection.
const (
	msgJoin  uint16 = 0x0110 // secure.JoinRequest -> MsgOK secure.JoinAnswer
	msgRenew uint16 = 0x0111 // secure.RenewRequest -> MsgOK secure.JoinAnswer
)

// Joined is what an agent learns by joining.
type Joined struct {
	Identity *secure.Identity
	Clock    time.Duration // our clock minus the head's, half a round trip uncertain
}

// Join gets a certificate for a node from the head of the cluster whose CA is given. The
// request's CSR, Version and Clock are filled in. cfg.Cluster must be set.
func Join(ctx context.Context, addrs []string, ca []byte, cfg Config, req secure.JoinRequest) (Joined, error) {
	p, err := secure.NewPending()
	if err != nil {
		return Joined{}, err
	}
	return JoinWith(ctx, addrs, ca, cfg, req, p)
}

// JoinWith is Join with a private key of the caller's, who may ask again with it when the
// answer was lost: to the head that is the same use of the join key.
func JoinWith(ctx context.Context, addrs []string, ca []byte, cfg Config, req secure.JoinRequest, p *secure.Pending) (Joined, error) {
	cfg = cfg.withDefaults()
	cfg.Role, cfg.Name = secure.RoleNone, req.Node
	tc, err := secure.JoinTLS(ca, cfg.Cluster)
	if err != nil {
		return Joined{}, err
	}
	req.CSR, req.Version = p.CSR, cfg.Version
	start := time.Now()
	req.Clock = start.UnixNano()
	a, err := ask(ctx, addrs, cfg, tc, purposeJoin, msgJoin, req)
	if err != nil {
		return Joined{}, errs.Wrap(errs.Unknown, err, "node %s cannot join cluster %s", req.Node, cfg.Cluster)
	}
	middle := start.Add(time.Since(start) / 2)
	id, err := p.Identity(ca, a.Cert, time.Duration(a.Life))
	if err != nil {
		return Joined{}, err
	}
	return Joined{Identity: id, Clock: time.Duration(middle.UnixNano() - a.Clock)}, nil
}

// Renewer renews a certificate at the head, over a connection of its own. addrs is asked
// each time, since the head may move.
func Renewer(addrs func() []string, cfg Config) secure.Renewer {
	cfg = cfg.withDefaults()
	return func(ctx context.Context, csr []byte) ([]byte, time.Duration, error) {
		a, err := ask(ctx, addrs(), cfg, cfg.Identity.ClientTLS(secure.RoleHead), purposeRenew, msgRenew, secure.RenewRequest{CSR: csr, Epoch: cfg.Epoch, Token: cfg.Token})
		return a.Cert, time.Duration(a.Life), err
	}
}

// ask sends one request on a connection of its own. Addresses are tried one after the
// other, and only those that did not answer at all make way for the next: a join key
// must not be used twice.
func ask(ctx context.Context, addrs []string, cfg Config, tc *tls.Config, purpose uint8, typ uint16, req any) (a secure.JoinAnswer, err error) {
	conn, err := dialFirst(ctx, addrs, cfg, func(ctx context.Context, addr string) (net.Conn, error) {
		c, _, err := dialTLS(ctx, addr, cfg, tc, purpose, secure.RoleHead)
		return c, err
	})
	if err != nil {
		return a, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, cfg.Handshake)
	defer cancel()
	defer bound(ctx, conn)()
	who := "the head at " + conn.RemoteAddr().String()
	if err := wire.WriteFrame(conn, typ, wire.Marshal(req)); err != nil {
		return a, dialErr(err, who)
	}
	typ, body, err := wire.ReadFrame(conn)
	if err != nil {
		return a, dialErr(noEOF(err), who)
	}
	if typ == wire.MsgError {
		var w errs.Wire
		if err := wire.Unmarshal(body, &w); err != nil {
			return a, err
		}
		return a, w.FromWire()
	}
	return a, wire.Unmarshal(body, &a)
}

// maxAsk bounds the request of a process that is not in the cluster yet.
const maxAsk = 64 << 10

func serveJoin(c net.Conn, cfg Config) error {
	return answer(c, cfg, msgJoin, func(body []byte) ([]byte, error) {
		var req secure.JoinRequest
		if err := wire.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		// The certificate first: a request that cannot be signed must not use the key up.
		cert, err := cfg.Authority.Sign(req.CSR, secure.RoleAgent, req.Node, cfg.CertLife)
		if err != nil {
			return nil, err
		}
		if err := cfg.Joiner.Admit(req); err != nil {
			return nil, err
		}
		cfg.Log.Info("node joined", "node", req.Node, "from", c.RemoteAddr().String(), "version", req.Version)
		return cert, nil
	})
}

func serveRenew(c net.Conn, cfg Config, p Peer, who secure.Subject) error {
	p.Role, p.Name = who.Role, who.Name
	return answer(c, cfg, msgRenew, func(body []byte) ([]byte, error) {
		var req secure.RenewRequest
		if err := wire.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		if cfg.MayRenew != nil {
			if err := cfg.MayRenew(p, req); err != nil {
				return nil, err
			}
		}
		return cfg.Authority.Sign(req.CSR, who.Role, who.Name, cfg.CertLife)
	})
}

func answer(c net.Conn, cfg Config, want uint16, sign func([]byte) ([]byte, error)) error {
	typ, body, err := readSmall(c)
	if err != nil {
		return errs.Wrap(errs.Corrupt, err, "no request")
	}
	var cert []byte
	if typ != want {
		err = errs.New(errs.Corrupt, "a message of type %#x where %#x is due", typ, want)
	} else {
		cert, err = sign(body)
	}
	if err != nil {
		wire.WriteFrame(c, wire.MsgError, wire.Marshal(errs.ToWire(err)))
		linger(c, time.Second)
		return err
	}
	life := cfg.CertLife
	if life <= 0 {
		life = secure.DefaultLife
	}
	a := secure.JoinAnswer{Cert: cert, Life: int64(life), Clock: time.Now().UnixNano()}
	if err := wire.WriteFrame(c, wire.MsgOK, wire.Marshal(a)); err != nil {
		return err
	}
	linger(c, time.Second)
	c.Close()
	return errServed
}

// readSmall is wire.ReadFrame with a bound for strangers.
func readSmall(c net.Conn) (uint16, []byte, error) {
	return wire.ReadFrame(&bounded{c, maxAsk})
}

type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errs.New(errs.Corrupt, "a request of more than %d bytes", maxAsk)
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
