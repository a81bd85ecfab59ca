package dial

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// knownKey is a line of known_hosts.
type knownKey struct {
	marker string   // "", "cert-authority" or "revoked"
	hosts  []string // patterns, or one hashed name
	key    ssh.PublicKey
	file   string
	line   int
}

func (k *knownKey) at() string { return k.file + ":" + strconv.Itoa(k.line) }

// parseKnown reads a known_hosts file. Lines that are none are passed over, as ssh does.
func parseKnown(r io.Reader, file string) ([]*knownKey, error) {
	var out []*knownKey
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for n := 1; in.Scan(); n++ {
		if len(bytes.TrimSpace(in.Bytes())) == 0 {
			continue
		}
		marker, hosts, key, _, _, err := ssh.ParseKnownHosts(bytes.Clone(in.Bytes()))
		if err != nil || marker != "" && marker != "cert-authority" && marker != "revoked" {
			continue
		}
		out = append(out, &knownKey{marker, hosts, key, file, n})
	}
	return out, in.Err()
}

// names says whether the line is about a host, as it stands in known_hosts: NAME, or
// [NAME]:PORT where the port is not 22.
func (k *knownKey) names(name string) bool {
	if len(k.hosts) == 1 && strings.HasPrefix(k.hosts[0], "|") {
		return hashMatches(k.hosts[0], name)
	}
	return matchList(k.hosts, strings.ToLower(name), true)
}

func hashMatches(hashed, name string) bool {
	f := strings.Split(hashed, "|") // "", "1", salt, hash
	if len(f) != 4 || f[1] != "1" {
		return false
	}
	salt, err1 := base64.StdEncoding.DecodeString(f[2])
	sum, err2 := base64.StdEncoding.DecodeString(f[3])
	return err1 == nil && err2 == nil && hmac.Equal(hashName(salt, name), sum)
}

func hashName(salt []byte, name string) []byte {
	h := hmac.New(sha1.New, salt)
	_, _ = io.WriteString(h, name)
	return h.Sum(nil)
}

// matchList is ssh's list of patterns: one must match, and none that begins with '!'.
func matchList(patterns []string, name string, fold bool) bool {
	found := false
	for _, p := range patterns {
		p, not := strings.CutPrefix(p, "!")
		if fold {
			p = strings.ToLower(p)
		}
		if matchPattern(p, name) {
			if not {
				return false
			}
			found = true
		}
	}
	return found
}

// matchPattern knows '*' and '?', and walks back to the last star only, so that no
// pattern takes more than len(p)*len(s) steps.
func matchPattern(p, s string) bool {
	i, j, star, mark := 0, 0, -1, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == s[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(p[i:], "*") == ""
}

// knownName is how known_hosts writes a host.
func knownName(host string, port int) string {
	host = strings.ToLower(host)
	if port == 22 {
		return host
	}
	return "[" + host + "]:" + strconv.Itoa(port)
}

// hostKeys is what known_hosts says about one host.
type hostKeys struct {
	name    string      // as it is written there
	keys    []*knownKey // of the host
	plain   []*knownKey // of its name without the port: good enough when the key is the same
	cas     []*knownKey
	revoked []*knownKey
	file    string // where a new key is written, "" = nowhere
	hash    bool
}

// known reads the files for a host. Those that are not there hold nothing.
func (s *settings) known() (*hostKeys, error) {
	h := &hostKeys{name: knownName(s.host, s.port), hash: s.hashKnown}
	plain := strings.ToLower(s.host)
	if s.hostKeyAlias != "" {
		h.name = strings.ToLower(s.hostKeyAlias)
		plain = h.name
	}
	if len(s.knownHosts) > 0 {
		h.file = s.knownHosts[0]
	}
	for _, path := range append(slices.Clone(s.knownHosts), s.globalKnownHosts...) {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fail(BadConfig, s.alias, err, "%s: known_hosts cannot be read", s.alias)
		}
		all, err := parseKnown(f, path)
		_ = f.Close()
		if err != nil {
			return nil, fail(BadConfig, s.alias, err, "%s: %s cannot be read", s.alias, path)
		}
		for _, k := range all {
			switch {
			case k.marker == "revoked":
				if k.names(h.name) || k.names(plain) {
					h.revoked = append(h.revoked, k)
				}
			case k.marker == "cert-authority":
				if k.names(h.name) || k.names(plain) {
					h.cas = append(h.cas, k)
				}
			case k.names(h.name):
				h.keys = append(h.keys, k)
			case k.names(plain):
				h.plain = append(h.plain, k)
			}
		}
	}
	return h, nil
}

// certAlgos are the algorithms of host certificates, plain ones those of keys by type.
var certAlgos = []string{ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01, ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01}

// plainAlgos are those of keys, ours in the order of ssh.
var plainAlgos = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}

// algorithms are those that the host may show a key of. A host with several keys shows the
// first kind that we name, so only kinds that are known are named where any is: else it
// would show one that looks like a change.
func (h *hostKeys) algorithms() []string {
	var out []string
	if len(h.cas) > 0 {
		out = append(out, certAlgos...)
	}
	known := h.keys
	if len(known) == 0 {
		known = h.plain
	}
	if len(known) == 0 {
		return append(out, plainAlgos...)
	}
	for _, a := range plainAlgos {
		for _, k := range known {
			t := k.key.Type()
			if (t == a || t == ssh.KeyAlgoRSA && (a == ssh.KeyAlgoRSASHA256 || a == ssh.KeyAlgoRSASHA512)) && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	if len(h.keys) == 0 { // the name without port is advice only: the host may be another
		for _, a := range plainAlgos {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// verdict on a key that a host shows.
type verdict uint8

const (
	keyKnown verdict = iota
	keyUnknown
	keyChanged
	keyRevoked
	keyBadCert // a certificate that proves nothing; why says what is wrong with it
)

func (h *hostKeys) check(key ssh.PublicKey) (v verdict, where *knownKey, why error) {
	cert, isCert := key.(*ssh.Certificate)
	inner := key
	if isCert {
		inner = cert.Key
	}
	for _, k := range h.revoked {
		if same(k.key, inner) || isCert && same(k.key, cert.SignatureKey) {
			return keyRevoked, k, nil
		}
	}
	if isCert {
		checker := ssh.CertChecker{IsHostAuthority: func(ca ssh.PublicKey, _ string) bool {
			return slices.ContainsFunc(h.cas, func(k *knownKey) bool { return same(k.key, ca) })
		}}
		name, _, err := net.SplitHostPort(h.name)
		if err != nil {
			name = h.name
		}
		// ssh wants the name among the principals without its port.
		if err := checker.CheckHostKey(net.JoinHostPort(name, "22"), nil, key); err != nil {
			return keyBadCert, nil, err
		}
		return keyKnown, nil, nil
	}
	for _, k := range append(slices.Clone(h.keys), h.plain...) {
		if same(k.key, key) {
			return keyKnown, k, nil
		}
	}
	if len(h.keys) > 0 {
		return keyChanged, h.keys[0], nil
	}
	return keyUnknown, nil, nil
}

func same(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// knownMu: one writer of this process at a time; a lock on the file keeps others out.
var knownMu sync.Mutex

// add writes a key to the user's known_hosts, unless it has come to stand there meanwhile.
func (h *hostKeys) add(key ssh.PublicKey) error {
	if h.file == "" || h.file == os.DevNull {
		return nil
	}
	knownMu.Lock()
	defer knownMu.Unlock()
	if err := os.MkdirAll(filepath.Dir(h.file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(h.file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := lockFile(f); err != nil {
		return err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	all, err := parseKnown(bytes.NewReader(text), h.file)
	if err != nil {
		return err
	}
	for _, k := range all {
		if k.marker == "" && same(k.key, key) && k.names(h.name) {
			return nil
		}
	}
	name := h.name
	if h.hash {
		salt := make([]byte, sha1.Size)
		_, _ = rand.Read(salt)
		b64 := base64.StdEncoding.EncodeToString
		name = fmt.Sprintf("|1|%s|%s", b64(salt), b64(hashName(salt, name)))
	}
	line := name + " " + string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))) + "\n"
	if len(text) > 0 && text[len(text)-1] != '\n' {
		line = "\n" + line
	}
	_, err = f.WriteString(line)
	return err
}
