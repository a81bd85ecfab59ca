package dial

import (
	"context"
	"fmt"
	"os/user"
	"path/filepath"
	"strings"
	"time"
)

// settings are what is known about a host before it is called: the Target, completed.
type settings struct {
	t                Target
	alias            string // as it was asked for; messages call it so
	host             string // name or address to connect to
	user             string
	port             int
	jump             []string // hops, the first one first
	proxyCommand     string
	identities       []string
	identitiesOnly   bool
	agent            string // socket; "" = none
	certs            []string
	knownHosts       []string // the user's; the first is written to
	globalKnownHosts []string
	strict           string // yes, ask, accept-new, no
	hostKeyAlias     string
	hashKnown        bool
	timeout          time.Duration
}

// key tells connections apart.
func (s *settings) key() string {
	return fmt.Sprintf("%q %q %q %d %q %q %q %q %q", s.t.Transport, s.user, s.host, s.port, s.jump, s.proxyCommand, s.t.Identity, s.t.Config, s.knownHosts)
}

func home() string {
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return "/"
}

func tilde(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(home(), rest)
	}
	return path
}

func (d *Dialer) settings(_ context.Context, t Target) (*settings, error) {
	s := &settings{t: t, alias: t.Host, host: t.Host, user: t.User, port: t.Port, timeout: d.o.Timeout, strict: "ask"}
	if s.user == "" {
		if u, err := user.Current(); err == nil {
			s.user = u.Username
		}
	}
	def(&s.port, 22)
	if d.o.AcceptNew {
		s.strict = "accept-new"
	}
	if t.Identity != "" {
		s.identities = append(s.identities, tilde(t.Identity))
	}
	for _, n := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		s.identities = append(s.identities, filepath.Join(home(), ".ssh", n))
	}
	s.knownHosts = []string{filepath.Join(home(), ".ssh", "known_hosts")}
	if t.KnownHosts != "" {
		s.knownHosts = []string{tilde(t.KnownHosts)}
	}
	return s, nil
}
