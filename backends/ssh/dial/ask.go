package dial

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// judge decides about the key that a host shows.
func (d *Dialer) judge(ctx context.Context, s *settings, known *hostKeys, key ssh.PublicKey) error {
	v, where, why := known.check(key)
	print := ssh.FingerprintSHA256(key)
	kind := keyKind(key)
	switch v {
	case keyKnown:
		return nil
	case keyChanged:
		return fail(ChangedKey, s.alias, nil, "%s: its %s key is %s, which is not the one in %s", s.alias, kind, print, where.at()).
			Hint("if the host was set up anew, remove the old key: ssh-keygen -R %q -f %s", known.name, where.file).
			Hint("if not, somebody else may be answering in its place; ask who runs it")
	case keyRevoked:
		return fail(ChangedKey, s.alias, nil, "%s: its key %s is revoked by %s", s.alias, print, where.at())
	case keyBadCert:
		return fail(ChangedKey, s.alias, why, "%s: its certificate does not hold", s.alias)
	}
	unknown := fail(UnknownKey, s.alias, nil, "%s: its %s key %s is in no known_hosts", s.alias, kind, print)
	switch s.strict {
	case "yes":
		return unknown.Hint("ssh_config says StrictHostKeyChecking yes; --accept-new-host-keys takes it nevertheless")
	case "accept-new", "no", "off":
	default:
		if !s.sitting.Terminal {
			return unknown.Hint("run `ssh %s` once to look at it, or give --accept-new-host-keys", s.alias)
		}
		if err := d.askKey(ctx, s, known, kind, print, key); err != nil {
			return err
		}
	}
	if err := known.add(key); err != nil {
		d.o.Log.Warn("the host's key is not written down", "host", s.alias, "file", known.file, "error", err)
	}
	return nil
}

func keyKind(k ssh.PublicKey) string {
	t := strings.TrimPrefix(k.Type(), "ssh-")
	t, _, _ = strings.Cut(strings.TrimPrefix(t, "sk-"), "-")
	return strings.ToUpper(t)
}

// askKey asks whether a new key is to be trusted, one question at a time.
func (d *Dialer) askKey(ctx context.Context, s *settings, known *hostKeys, kind, print string, key ssh.PublicKey) error {
	d.asking.Lock()
	defer d.asking.Unlock()
	if now, err := s.known(); err == nil { // somebody may have said so while we waited
		if v, _, _ := now.check(key); v == keyKnown {
			return nil
		}
	}
	prompt := fmt.Sprintf("%s (%s) is new to this machine. Its %s key is %s.\nIs that right, and shall it be written to %s (yes/no/fingerprint)? ", s.alias, known.name, kind, print, known.file)
	for range 3 {
		answer, err := d.o.Asker.Ask(ctx, prompt, false)
		if err != nil {
			return fail(UnknownKey, s.alias, err, "%s: whether its key %s is right was not answered", s.alias, print)
		}
		switch answer = strings.TrimSpace(answer); {
		case strings.EqualFold(answer, "yes") || answer == print:
			return nil
		case strings.EqualFold(answer, "no"):
			return fail(UnknownKey, s.alias, nil, "%s: its key %s was not taken", s.alias, print)
		}
		prompt = "Please type yes, no or the fingerprint: "
	}
	return fail(UnknownKey, s.alias, nil, "%s: its key %s was not taken", s.alias, print)
}
