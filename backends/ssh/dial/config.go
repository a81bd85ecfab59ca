package dial

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"launcher/internal/errs"
)

// reading is ssh_config being read for one host, for machines that have no ssh to ask.
type reading struct {
	t Target
	v values
}

// several are the keywords that add up; of all others the first value holds.
var several = map[string]bool{"identityfile": true, "certificatefile": true}

// verbatim are those whose value is the rest of the line.
var verbatim = map[string]bool{"proxycommand": true, "localcommand": true, "remotecommand": true, "knownhostscommand": true}

// maxIncludes bounds how deep files include each other, as in ssh.
const maxIncludes = 16

func readConfig(t Target) (values, error) {
	r := &reading{t: t, v: values{}}
	switch t.Config {
	case "none":
		return r.v, nil
	case "":
		for _, path := range []string{tilde("~/.ssh/config"), "/etc/ssh/ssh_config"} {
			if err := r.file(path, true, 0); err != nil && !errs.Is(err, errs.NotFound) {
				return nil, err
			}
		}
		return r.v, nil
	}
	return r.v, r.file(tilde(t.Config), true, 0)
}

func (r *reading) file(path string, active bool, depth int) error {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return errs.Wrap(errs.NotFound, err, "%s: ssh_config", r.t.Host)
	}
	if err != nil {
		return fail(BadConfig, r.t.Host, err, "%s: ssh_config cannot be read", r.t.Host)
	}
	return r.text(string(text), path, active, depth)
}

// text reads lines; those that follow a Host or Match which is not about our host are
// passed over. never says that all of them are.
func (r *reading) text(text, path string, active bool, depth int) error {
	never := !active
	n := 0
	for line := range strings.Lines(text) {
		n++
		bad := func(format string, args ...any) error {
			return fail(BadConfig, r.t.Host, errs.New(errs.Invalid, format, args...), "%s: %s:%d", r.t.Host, path, n)
		}
		key, rest := keyword(line)
		if key == "" {
			continue
		}
		if verbatim[key] {
			if active {
				r.set(key, []string{rest})
			}
			continue
		}
		args, ok := words(rest)
		if !ok {
			return bad("a quote is not closed")
		}
		if len(args) == 0 {
			return bad("%s has no value", key)
		}
		switch key {
		case "host":
			active = !never && matchList(args, r.t.Host, false)
		case "match":
			is, why := r.match(args)
			if why != "" && !never {
				return bad("%s, which needs the ssh command, and there is none here", why)
			}
			active = !never && is
		case "include":
			for _, p := range args {
				if err := r.include(p, path, active, depth); err != nil {
					return err
				}
			}
		default:
			if active {
				r.set(key, args)
			}
		}
	}
	return nil
}

func (r *reading) include(pattern, from string, active bool, depth int) error {
	if depth >= maxIncludes {
		return fail(BadConfig, r.t.Host, nil, "%s: %s includes too deep", r.t.Host, from)
	}
	if pattern = tilde(pattern); !filepath.IsAbs(pattern) {
		dir := tilde("~/.ssh")
		if strings.HasPrefix(from, "/etc/ssh/") {
			dir = "/etc/ssh"
		}
		pattern = filepath.Join(dir, pattern)
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return fail(BadConfig, r.t.Host, err, "%s: Include %s in %s", r.t.Host, pattern, from)
	}
	for _, f := range files {
		if err := r.file(f, active, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *reading) set(key string, args []string) {
	switch {
	case several[key]:
		if !slices.Contains(r.v[key], args[0]) {
			r.v[key] = append(r.v[key], args[0])
		}
	case r.v[key] != nil, key == "proxyjump" && r.v["proxycommand"] != nil, key == "proxycommand" && r.v["proxyjump"] != nil:
	case key == "hostname":
		r.v[key] = []string{strings.ReplaceAll(strings.ReplaceAll(args[0], "%h", r.t.Host), "%%", "%")}
	default:
		r.v[key] = args
	}
}

// match judges the criteria of a Match line. why is not empty where only ssh can.
func (r *reading) match(args []string) (is bool, why string) {
	host, user := r.v.one("hostname"), r.t.User
	def(&host, r.t.Host)
	def(&user, r.v.one("user"))
	def(&user, localUser())
	is = true
	for i := 0; i < len(args); i++ {
		c, not := strings.CutPrefix(strings.ToLower(args[i]), "!")
		if c == "all" {
			is = is && !not
			continue
		}
		var subject string
		switch c {
		case "host":
			subject = host
		case "originalhost":
			subject = r.t.Host
		case "user":
			subject = user
		case "localuser":
			subject = localUser()
		default:
			if is { // where it cannot change anything it need not be known
				return false, "Match " + c
			}
		}
		if c == "canonical" || c == "final" {
			continue
		}
		if i++; i == len(args) {
			return false, "Match " + c + " without its value"
		}
		if subject != "" && matchList(strings.Split(args[i], ","), subject, false) == not {
			is = false
		}
	}
	return is, ""
}

// keyword cuts a line into its keyword, in small letters, and what follows it.
func keyword(line string) (key, rest string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", ""
	}
	i := strings.IndexFunc(line, func(r rune) bool { return r == '=' || unicode.IsSpace(r) })
	if i < 0 {
		return strings.ToLower(line), ""
	}
	rest = strings.TrimSpace(line[i:])
	if after, ok := strings.CutPrefix(rest, "="); ok {
		rest = strings.TrimSpace(after)
	}
	return strings.ToLower(line[:i]), rest
}

// words splits as ssh does: spaces, quotes of both kinds, a backslash before those and
// itself, '#' begins a comment.
func words(s string) (out []string, ok bool) {
	var b strings.Builder
	quote, in := byte(0), false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s) && (s[i+1] == '\\' || s[i+1] == '"' || s[i+1] == '\'' || s[i+1] == ' ' && quote == 0):
			i++
			b.WriteByte(s[i])
			in = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				out = append(out, b.String())
				b.Reset()
				in = false
			}
		case c == '#' && !in:
			return out, true
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if in {
		out = append(out, b.String())
	}
	return out, quote == 0
}

// hopTarget is the Target of the last of some hops, which is reached through the others.
func hopTarget(t Target, hops []string) (Target, error) {
	last := len(hops) - 1
	h, err := ParseTarget(hops[last])
	if err != nil {
		return Target{}, err
	}
	h.Config, h.Identity, h.KnownHosts, h.Transport = t.Config, t.Identity, t.KnownHosts, t.Transport
	h.Jump = strings.Join(hops[:last], ",")
	if h.depth = t.depth + 1; h.depth > maxHops {
		return Target{}, fail(BadConfig, t.Host, nil, "%s: more than %s jump hosts; do they jump in a circle?", t.Host, strconv.Itoa(maxHops))
	}
	return h, nil
}

const maxHops = 8
