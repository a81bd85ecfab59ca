// Package hostlist reads lists of hosts as specs and batch systems write them.
package hostlist

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"launcher/internal/errs"
)

// maxHosts bounds one pool's host list.
const maxHosts = 65536

var hostRE = regexp.MustCompile(`^([A-Za-z0-9._][A-Za-z0-9._-]*@)?(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?)(:[0-9]{1,5})?$`)

// Is says whether s is one [user@]host[:port].
func Is(s string) bool { return hostRE.MatchString(s) }

// Machine is what two ways to write the same machine have in common: its name, and its
// port where that is not the usual one. Whose account it is makes no difference.
func Machine(host string, usual int) string {
	m := hostRE.FindStringSubmatch(host)
	if m == nil {
		return host
	}
	name := strings.ToLower(strings.Trim(m[2], "[]"))
	if p := strings.TrimPrefix(m[4], ":"); p != "" {
		if n, _ := strconv.Atoi(p); n != usual {
			return name + " " + strconv.Itoa(n)
		}
	}
	return name
}

// Expand turns "gpu[01-04,7]" into gpu01 gpu02 gpu03 gpu04 gpu7. Numbers keep the
// width of the first of their range. Each result is [user@]host[:port].
func Expand(s string) ([]string, error) {
	out, err := expand(s)
	if err != nil {
		return nil, err
	}
	for _, h := range out {
		m := hostRE.FindStringSubmatch(h)
		if m == nil {
			return nil, errs.New(errs.Invalid, `%q is not a host; give [user@]host[:port], such as "gpu[01-04]" or "alice@10.0.0.9:2222"`, h)
		}
		if p := strings.TrimPrefix(m[4], ":"); p != "" {
			if n, _ := strconv.Atoi(p); n < 1 || n > 65535 {
				return nil, errs.New(errs.Invalid, "%q: port %s is out of bounds; give 1 to 65535", h, p)
			}
		}
	}
	return out, nil
}

func expand(s string) ([]string, error) {
	open := strings.IndexByte(s, '[')
	for open >= 0 { // [::1] is an address, not a range
		if end := strings.IndexByte(s[open:], ']'); end > 0 && strings.Contains(s[open:open+end], ":") {
			next := strings.IndexByte(s[open+end:], '[')
			if next < 0 {
				return []string{s}, nil
			}
			open += end + next
			continue
		}
		break
	}
	if open < 0 {
		return []string{s}, nil
	}
	bad := func(why string) ([]string, error) {
		return nil, errs.New(errs.Invalid, `%q is not a host list: %s; give numbers and ranges in brackets, such as "gpu[01-04,7]"`, s, why)
	}
	end := strings.IndexByte(s[open:], ']')
	if end < 0 {
		return bad("a bracket is not closed")
	}
	rest, err := expand(s[open+end+1:])
	if err != nil {
		return nil, err
	}
	var out []string
	for _, part := range strings.Split(s[open+1:open+end], ",") {
		a, b, dash := strings.Cut(part, "-")
		if !dash {
			b = a
		}
		lo, err1 := strconv.ParseUint(a, 10, 31)
		hi, err2 := strconv.ParseUint(b, 10, 31)
		switch {
		case err1 != nil || err2 != nil:
			return bad(fmt.Sprintf("%q is not a number or a range", part))
		case lo > hi:
			return bad(fmt.Sprintf("%q runs backwards", part))
		case (hi-lo+1)*uint64(len(rest))+uint64(len(out)) > maxHosts:
			return bad(fmt.Sprintf("more than %d hosts", maxHosts))
		}
		for i := lo; i <= hi; i++ {
			for _, r := range rest {
				out = append(out, fmt.Sprintf("%s%0*d%s", s[:open], len(a), i, r))
			}
		}
	}
	return out, nil
}
