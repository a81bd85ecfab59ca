package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// auth logs in to one host.
type auth struct {
	d       *Dialer
	ctx     context.Context
	s       *settings
	bound   *clock
	met     bool     // the host has shown its key
	allowed []string // methods that the host takes, as it said last
	tried   []string // what was tried, for the message
	skipped []string // what could not be, because nobody can be asked
	agent   net.Conn
	asked   error // what came of asking, where it ended the login
}

func (d *Dialer) newAuth(ctx context.Context, s *settings, bound *clock) *auth {
	return &auth{d: d, ctx: ctx, s: s, bound: bound}
}

func (a *auth) close() {
	if a.agent != nil {
		_ = a.agent.Close()
	}
}

func (a *auth) methods() []ssh.AuthMethod {
	out := []ssh.AuthMethod{ssh.PublicKeysCallback(a.signers)}
	if a.s.sitting.Terminal {
		out = append(out, ssh.RetryableAuthMethod(ssh.KeyboardInteractive(a.answer), 3), ssh.RetryableAuthMethod(ssh.PasswordCallback(a.password), 3))
	}
	return out
}

// note hears before each try what the host takes.
func (a *auth) note(c *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	a.allowed = c.AllowedMethods
	a.bound.restart()
	return nil, a.asked
}

// signers are the keys to try: as ssh has it, those of the agent that ssh_config names,
// its others, then those in files.
func (a *auth) signers() ([]ssh.Signer, error) {
	held := a.held()
	var named, files []ssh.Signer
	for _, path := range a.s.identities {
		pub := publicHalf(path)
		if i := slices.IndexFunc(held, func(k ssh.Signer) bool { return pub != nil && same(k.PublicKey(), pub) }); i >= 0 {
			named = append(named, held[i])
			held = slices.Delete(held, i, i+1)
			continue
		}
		k, why := a.d.key(path).signer(a)
		switch {
		case k != nil:
			a.tried = append(a.tried, path)
			files = append(files, k)
		case why != "":
			a.skipped = append(a.skipped, why)
		}
	}
	if n := len(named) + len(held); n > 0 && !a.s.identitiesOnly {
		a.tried = append(a.tried, fmt.Sprintf("%d of the agent", n))
	} else if len(named) > 0 {
		a.tried = append(a.tried, fmt.Sprintf("%d of the agent", len(named)))
	}
	if !a.s.identitiesOnly {
		named = append(named, held...)
	}
	all := append(named, files...)
	return append(a.certificates(append(held, all...)), all...), nil
}

// held are the keys of the agent.
func (a *auth) held() []ssh.Signer {
	if a.s.agent == "" {
		return nil
	}
	if a.agent == nil {
		c, err := net.DialTimeout("unix", a.s.agent, 5*time.Second)
		if err != nil {
			a.d.o.Log.Debug("no agent", "socket", a.s.agent, "error", err)
			return nil
		}
		a.agent = c
	}
	_ = a.agent.SetDeadline(time.Now().Add(10 * time.Second))
	keys, err := agent.NewClient(a.agent).Signers()
	if err != nil {
		a.d.o.Log.Warn("the agent does not say which keys it has", "socket", a.s.agent, "error", err)
		return nil
	}
	_ = a.agent.SetDeadline(time.Time{}) // it may ask its user before it signs
	for i, k := range keys {
		if m, ok := k.(ssh.MultiAlgorithmSigner); ok {
			keys[i] = patient{m, a.bound}
		}
	}
	return keys
}

// patient signs while the clock stands still: a person may have to touch or to type
// something.
type patient struct {
	ssh.MultiAlgorithmSigner
	bound *clock
}

func (p patient) SignWithAlgorithm(r io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	defer p.bound.pause()()
	return p.MultiAlgorithmSigner.SignWithAlgorithm(r, data, algorithm)
}

// certificates are those of files whose keys we can sign with; they are tried before plain
// keys.
func (a *auth) certificates(keys []ssh.Signer) []ssh.Signer {
	paths := slices.Clone(a.s.certs)
	for _, p := range a.s.identities {
		paths = append(paths, p+"-cert.pub")
	}
	var out []ssh.Signer
	for _, p := range paths {
		cert, ok := readPublic(p).(*ssh.Certificate)
		if !ok {
			continue
		}
		for _, k := range keys {
			if same(k.PublicKey(), cert.Key) {
				if c, err := ssh.NewCertSigner(cert, k); err == nil {
					out = append(out, c)
					a.tried = append(a.tried, p)
				}
				break
			}
		}
	}
	return out
}

// turn waits until nobody else of the whole Dialer asks anything. The clock stands until
// the turn is over.
func (a *auth) turn() (over func()) {
	resume := a.bound.pause()
	a.d.asking.Lock()
	return func() {
		a.d.asking.Unlock()
		resume()
	}
}

// ask asks the person; it is our turn.
func (a *auth) ask(prompt string, secret bool) (string, error) {
	out, err := a.d.o.Asker.Ask(a.ctx, prompt, secret)
	if err != nil {
		a.asked = fail(NoTerminal, a.s.alias, err, "%s: %q was not answered", a.s.alias, strings.TrimSpace(prompt))
		return "", a.asked
	}
	return out, nil
}

// answer is keyboard-interactive: whatever the host asks (2FA).
func (a *auth) answer(name, instruction string, questions []string, echos []bool) ([]string, error) {
	if len(questions) == 0 {
		return nil, nil
	}
	defer a.turn()()
	a.note1("keyboard-interactive")
	head := strings.TrimSpace(strings.TrimSpace(name) + "\n" + strings.TrimSpace(instruction))
	out := make([]string, len(questions))
	for i, q := range questions {
		prompt := fmt.Sprintf("(%s@%s) %s", a.s.user, a.s.alias, q)
		if i == 0 && head != "" {
			prompt = head + "\n" + prompt
		}
		var err error
		if out[i], err = a.ask(printable(prompt), !echos[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *auth) password() (string, error) {
	defer a.turn()()
	a.note1("password")
	return a.ask(fmt.Sprintf("%s@%s's password: ", a.s.user, a.s.alias), true)
}

func (a *auth) note1(method string) {
	if !slices.Contains(a.tried, method) {
		a.tried = append(a.tried, method)
	}
}

// printable drops what a host could play tricks on a terminal with.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}

// failure says why a handshake failed.
func (a *auth) failure(known *hostKeys, err error) error {
	n := a.s.alias
	if a.asked != nil {
		return a.asked
	}
	if alg, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		if keys := append(slices.Clone(known.keys), known.cas...); strings.Contains(alg.What, "host key") && len(keys) > 0 {
			return fail(ChangedKey, n, nil, "%s: it has no key of the kinds in known_hosts any more (%s)", n, keys[0].at()).
				Hint("if the host was set up anew, remove the old key: ssh-keygen -R %q -f %s", known.name, keys[0].file)
		}
		return fail(Protocol, n, err, "%s: it and we have no algorithm in common", n).Hint(`transport = "system" has the algorithms of this machine's ssh`)
	}
	if !a.met {
		if dropped(err) {
			return fail(Dropped, n, nil, "%s: it hung up during the handshake", n).Hint("its sshd may have too many callers (MaxStartups), or not take this machine's address")
		}
		return fail(Protocol, n, err, "%s: it does not speak SSH as we do", n).Hint("is it an sshd that listens on port %d?", a.s.port)
	}
	tried := "no key: there is none"
	if len(a.tried) > 0 {
		tried = strings.Join(a.tried, ", ")
	}
	f := fail(Denied, n, nil, "%s: %s is not let in; tried %s", n, a.s.user, tried)
	if strings.Contains(err.Error(), "Too many authentication failures") {
		return f.Hint("more keys were offered than it looks at; name the right one (identity, or IdentityFile with IdentitiesOnly yes)")
	}
	asks := slices.ContainsFunc(a.allowed, func(m string) bool { return m == "keyboard-interactive" || m == "password" })
	if !a.s.sitting.Terminal && (len(a.skipped) > 0 || asks && !slices.Contains(a.allowed, "publickey")) {
		f = fail(NoTerminal, n, nil, "%s: %s is not let in without being asked, and there is no terminal; tried %s", n, a.s.user, tried)
	}
	for _, why := range a.skipped {
		f = f.Hint("%s", why)
	}
	if len(a.allowed) > 0 {
		f = f.Hint("it takes %s; `ssh-copy-id` lets a key of yours in, user and identity in the pool or ssh_config say who you are there", strings.Join(a.allowed, ", "))
	}
	if slices.Contains(a.allowed, "gssapi-with-mic") {
		f = f.Hint(`with a Kerberos ticket, transport = "system" logs in (GSSAPIAuthentication yes in ssh_config)`)
	}
	if _, err := os.Stat(a.s.agent); a.s.agent != "" && err != nil {
		f = f.Hint("the agent's socket %s is not there", a.s.agent)
	}
	return f
}
