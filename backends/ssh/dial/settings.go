package dial

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"launcher/internal/errs"
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
	sitting          Sitting
}

// key tells connections apart.
func (s *settings) key() string {
	return fmt.Sprintf("%q %q %q %d %q %q %q %q %q", s.t.Transport, s.user, s.host, s.port, s.jump, s.proxyCommand, s.t.Identity, s.t.Config, s.knownHosts)
}

// home is where ssh looks for its files: that of the user, whatever $HOME says.
func home() string {
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return "/"
}

func tilde(path string) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		return filepath.Join(home(), path[1:])
	}
	return path
}

func localUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// values are those of ssh_config for one host: keywords in small letters.
type values map[string][]string

func (v values) one(key string) string {
	if x := v[key]; len(x) > 0 && x[0] != "none" {
		return x[0]
	}
	return ""
}

func (v values) yes(key string) bool { return v.one(key) == "yes" || v.one(key) == "true" }

// config finds what ssh_config says about a host. The machine's own ssh is asked where
// there is one: it knows all of the format, of the version that the user writes for. Where
// there is none, our reader knows enough, and says so where it does not.
func (d *Dialer) config(ctx context.Context, t Target) (values, error) {
	key := fmt.Sprintf("%q %q %q %d", t.Config, t.Host, t.User, t.Port)
	d.mu.Lock()
	v := d.read[key]
	d.mu.Unlock()
	if v != nil {
		return v, nil
	}
	ssh, err := exec.LookPath("ssh")
	if err == nil {
		v, err = askSSH(ctx, ssh, t)
	} else {
		v, err = readConfig(t)
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.read[key] = v
	d.mu.Unlock()
	return v, nil
}

// askSSH has ssh say what it would do.
func askSSH(ctx context.Context, ssh string, t Target) (values, error) {
	args := []string{"-G"}
	if t.Config != "" {
		args = append(args, "-F", tilde(t.Config))
	}
	if t.User != "" {
		args = append(args, "-l", t.User)
	}
	if t.Port != 0 {
		args = append(args, "-p", strconv.Itoa(t.Port))
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // Match exec may take its time
	defer cancel()
	c := exec.CommandContext(ctx, ssh, append(args, "--", t.Host)...)
	c.WaitDelay = time.Second
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.Output()
	if err != nil {
		if ctx.Err() != nil {
			return nil, errs.Wrap(errs.Unknown, context.Cause(ctx), "%s: reading ssh_config", t.Host)
		}
		return nil, fail(BadConfig, t.Host, nil, "%s: ssh does not take its configuration: %s", t.Host, oneLine(errOut.String())).
			Hint("`ssh -G %s` says the same", t.Host)
	}
	v := values{}
	for line := range strings.Lines(string(out)) {
		k, x, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch k {
		case "userknownhostsfile", "globalknownhostsfile":
			if _, err := os.Stat(x); err != nil { // else it is one name with spaces in it
				v[k] = append(v[k], strings.Fields(x)...)
				continue
			}
		}
		v[k] = append(v[k], x)
	}
	return v, nil
}

// oneLine is what a program said, for a message.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(s) > 400 {
		s = s[:400] + "..."
	}
	return s
}

// settings completes a Target.
func (d *Dialer) settings(ctx context.Context, t Target) (*settings, error) {
	if t.Host == "" || strings.HasPrefix(t.Host, "-") || strings.HasPrefix(t.User, "-") || strings.ContainsFunc(t.Host, unfit) || strings.ContainsFunc(t.User, unfit) {
		return nil, errs.New(errs.Invalid, "%q is no host that can be reached", t.Host)
	}
	v, err := d.config(ctx, t)
	if err != nil {
		return nil, err
	}
	return d.complete(t, v)
}

func (d *Dialer) complete(t Target, v values) (*settings, error) {
	def(&t.Transport, "go")
	s := &settings{t: t, alias: t.Host, host: v.one("hostname"), user: t.User, port: t.Port, timeout: d.o.Timeout,
		identitiesOnly: v.yes("identitiesonly"), hostKeyAlias: v.one("hostkeyalias"), hashKnown: v.yes("hashknownhosts"), proxyCommand: v.one("proxycommand")}
	if s.host == "" {
		s.host = t.Host
	}
	if s.user == "" {
		s.user = v.one("user")
	}
	def(&s.user, localUser())
	if s.port == 0 {
		s.port, _ = strconv.Atoi(v.one("port"))
	}
	def(&s.port, 22)
	if n, err := strconv.Atoi(v.one("connecttimeout")); err == nil && n > 0 {
		s.timeout = time.Duration(n) * time.Second
	}
	switch s.strict = v.one("stricthostkeychecking"); s.strict {
	case "true":
		s.strict = "yes"
	case "false", "off":
		s.strict = "no"
	case "":
		s.strict = "ask"
	}
	var err error
	if s.jump, err = s.hops(t.Jump, v.one("proxyjump")); err != nil {
		return nil, err
	}
	if t.Jump != "" {
		s.proxyCommand = ""
	}
	return s, s.files(v)
}

// hops are the jump hosts: those of the pool, else those of ssh_config. A host that would
// jump through itself (Host * with a ProxyJump) is reached directly, as by ssh.
func (s *settings) hops(pool, config string) ([]string, error) {
	list := pool
	if list == "" {
		list = config
	}
	if list == "" || list == "none" {
		return nil, nil
	}
	var out []string
	for _, h := range strings.Split(list, ",") {
		h = strings.TrimPrefix(strings.TrimSpace(h), "ssh://")
		t, err := ParseTarget(h)
		if err != nil {
			return nil, err
		}
		if pool == "" && t.Host == s.alias {
			return nil, nil
		}
		out = append(out, h)
	}
	return out, nil
}

// files fills in the settings that are paths.
func (s *settings) files(v values) error {
	var err error
	expand := func(path string) string {
		out, e := s.expand(os.Expand(path, func(name string) string { return os.Getenv(name) }))
		if e != nil && err == nil {
			err = e
		}
		return tilde(out)
	}
	if s.t.Identity != "" {
		s.identities = []string{tilde(s.t.Identity)}
	}
	configured := v["identityfile"]
	if configured == nil {
		configured = []string{"~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ecdsa_sk", "~/.ssh/id_ed25519", "~/.ssh/id_ed25519_sk"}
	}
	for _, p := range configured {
		if p = expand(p); p != "none" && !slices.Contains(s.identities, p) {
			s.identities = append(s.identities, p)
		}
	}
	for _, p := range v["certificatefile"] {
		if p != "none" {
			s.certs = append(s.certs, expand(p))
		}
	}
	s.agent = os.Getenv("SSH_AUTH_SOCK")
	if a := v["identityagent"]; len(a) > 0 && a[0] != "SSH_AUTH_SOCK" {
		switch {
		case a[0] == "none":
			s.agent = ""
		case strings.HasPrefix(a[0], "$") && !strings.HasPrefix(a[0], "${"):
			s.agent = os.Getenv(a[0][1:])
		default:
			s.agent = expand(a[0])
		}
	}
	s.knownHosts = []string{tilde("~/.ssh/known_hosts"), tilde("~/.ssh/known_hosts2")}
	s.globalKnownHosts = []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}
	for key, list := range map[string]*[]string{"userknownhostsfile": &s.knownHosts, "globalknownhostsfile": &s.globalKnownHosts} {
		if v[key] != nil {
			*list = nil
			for _, p := range v[key] {
				if p != "none" {
					*list = append(*list, expand(p))
				}
			}
		}
	}
	if s.t.KnownHosts != "" {
		s.knownHosts, s.globalKnownHosts = []string{tilde(s.t.KnownHosts)}, nil
	}
	return err
}

// expand replaces the tokens of ssh_config.
func (s *settings) expand(text string) (string, error) {
	if !strings.Contains(text, "%") {
		return text, nil
	}
	short, _ := os.Hostname()
	long := short
	short, _, _ = strings.Cut(short, ".")
	key := s.hostKeyAlias
	def(&key, s.alias)
	tokens := map[byte]string{'%': "%", 'h': s.host, 'n': s.alias, 'p': strconv.Itoa(s.port), 'r': s.user, 'u': localUser(),
		'd': home(), 'i': strconv.Itoa(os.Getuid()), 'l': long, 'L': short, 'k': key, 'j': strings.Join(s.jump, ",")}
	tokens['C'] = fmt.Sprintf("%x", sha1.Sum([]byte(long+s.host+tokens['p']+s.user+tokens['j'])))
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		i++
		if i == len(text) {
			return "", fail(BadConfig, s.alias, nil, "%s: %q in ssh_config ends in %%", s.alias, text)
		}
		x, ok := tokens[text[i]]
		if !ok {
			return "", fail(BadConfig, s.alias, nil, "%s: %%%c in %q of ssh_config is not known", s.alias, text[i], text)
		}
		b.WriteString(x)
	}
	return b.String(), nil
}
