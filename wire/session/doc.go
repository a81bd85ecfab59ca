// Package session is how processes of a cluster talk: an authenticated connection that
// carries many streams.
//
// Over TCP a session is mutual TLS 1.3 (package secure), then a version handshake, then
// the multiplexer of mux.go. Over a unix socket it is the same without TLS: the kernel says who is
// there, and only the same user is let in. docs/protocol.md has every byte.
//
// A Session is one connection; it ends when either side closes it or when nothing has
// been heard for three keepalive intervals (or for what Bear says), and everything that waits on it gets the
// cause. A Stream is one conversation in it: a net.Conn with flow control of its own, so
// that a slow reader stops its own writer and nobody else. Closing a stream tells the
// other side that nothing more is wanted; CloseWrite only that nothing more comes.
package session

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"launcher/wire"
	"launcher/wire/secure"
)

// Config is one side's part of a session. The zero values of the optional fields are
// what production uses.
type Config struct {
	// Over TCP: who we are. Over a unix socket it may be nil; then Cluster, Role and Name say it.
	Identity *secure.Identity
	Cluster  string
	Role     secure.Role
	Name     string

	// The head only: Authority signs joins and renewals, Joiner decides who joins.
	Authority *secure.Authority
	Joiner    secure.Joiner
	CertLife  time.Duration // of what Authority signs; 0 = secure.DefaultLife
	// MayRenew may refuse to renew the certificate of a peer that shows one, because it is
	// no member any more; nil = all may.
	MayRenew func(Peer, secure.RenewRequest) error

	// An agent only: which node it is, for Renewer.
	Epoch uint64
	Token string

	// PeerName is who must be at the other end of what is dialled; "" = anyone of the role.
	PeerName string
	// Meter counts what all sessions that have it send and receive; nil = nobody counts.
	Meter *atomic.Int64

	// Allow may refuse a peer that has authenticated; its error is sent to the peer.
	Allow func(Peer) error

	Version   string        // build version; "" = the binary's own
	Handshake time.Duration // bound of everything before the first stream; 0 = 10 s
	KeepAlive time.Duration // 0 = 2 s
	Log       *slog.Logger  // nil = discard

	major uint16 // of the protocol; 0 = ours; tests pretend to be another version
}

func (c Config) withDefaults() Config {
	if c.Identity != nil {
		s := c.Identity.Subject()
		c.Cluster, c.Role, c.Name = s.Cluster, s.Role, s.Name
	}
	if c.major == 0 {
		c.major = wire.ProtocolMajor
	}
	if c.Version == "" {
		c.Version = BuildVersion()
	}
	if c.Handshake <= 0 {
		c.Handshake = 10 * time.Second
	}
	if c.KeepAlive <= 0 {
		c.KeepAlive = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Peer is the other side, as it authenticated.
type Peer struct {
	Role    secure.Role
	Name    string
	Addr    string // as the connection sees it
	Version string // build version
	PID     int    // unix sockets: the kernel's word; else the peer's
	Unix    bool
	Minor   uint16        // of its protocol
	Clock   time.Duration // its wall clock minus ours at the handshake, half a round trip uncertain
}

func (p Peer) String() string {
	s := p.Role.String()
	if p.Name != "" && p.Name != s {
		s += " " + p.Name
	}
	if p.Addr != "" {
		s += " at " + p.Addr
	}
	return s
}

// BuildVersion is the version of the running binary as the Go tool stamped it.
func BuildVersion() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := bi.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "+dirty"
			}
		}
	}
	if rev == "" {
		return "devel"
	}
	return fmt.Sprintf("devel-%.12s%s", rev, dirty)
}
