package dial

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
)

// auth logs in to one host.
type auth struct {
	d     *Dialer
	ctx   context.Context
	s     *settings
	bound *clock
	met   bool     // the host has shown its key
	tried []string // what was tried, for the message
}

func (d *Dialer) newAuth(ctx context.Context, s *settings, bound *clock) *auth {
	return &auth{d: d, ctx: ctx, s: s, bound: bound}
}

func (a *auth) close() {}

func (a *auth) methods() []ssh.AuthMethod {
	return []ssh.AuthMethod{ssh.PublicKeysCallback(a.signers)}
}

func (a *auth) signers() ([]ssh.Signer, error) {
	a.bound.restart()
	var out []ssh.Signer
	for _, path := range a.s.identities {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		k, err := ssh.ParsePrivateKey(b)
		if err != nil {
			a.tried = append(a.tried, path+" (it cannot be used: "+err.Error()+")")
			continue
		}
		a.tried = append(a.tried, path)
		out = append(out, k)
	}
	return out, nil
}

// failure says why a handshake failed.
func (a *auth) failure(known *hostKeys, err error) error {
	n := a.s.alias
	if alg, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		if strings.Contains(alg.What, "host key") && len(known.keys) > 0 {
			return fail(ChangedKey, n, nil, "%s: it has no key of the kind in %s any more", n, known.keys[0].at())
		}
		return fail(Protocol, n, err, "%s: it and we have no algorithm in common", n)
	}
	if dropped(err) && !a.met {
		return fail(Dropped, n, nil, "%s: it hung up during the handshake", n)
	}
	if !a.met {
		return fail(Protocol, n, err, "%s: it does not speak SSH as we do", n)
	}
	return fail(Denied, n, nil, "%s: %s is not let in; tried %s", n, a.s.user, strings.Join(a.tried, ", "))
}
