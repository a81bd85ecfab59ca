//go:build unix

package testkit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshdPath is where Debian and most others have it; it wants to be called by its full path.
const sshdPath = "/usr/sbin/sshd"

// sshdLeash ends the server when its standard input is at its end, as it is when the test
// has been killed.
const sshdLeash = `exec 3<&0; "$@" 3<&- </dev/null & p=$!; { cat; kill -9 $p; } <&3 >/dev/null 2>&1 & wait $p`

// Lab is a set of real OpenSSH servers on loopback addresses that run as the test's own
// user, with the client's side of it: a key, known_hosts and an ssh_config that names them.
type Lab struct {
	t          testing.TB
	Dir        string
	User       string // who logs in: the test's own user
	Key        string // private key file that every server takes
	KnownHosts string
	Config     string // ssh_config: Host NAME for each server
}

// ServerOptions says how a server differs from the plain one: sftp, one ed25519 host key,
// all forwarding, a home of its own.
type ServerOptions struct {
	Lines   []string // of sshd_config; they come first, and the first value of a keyword holds
	Keys    []string // kinds of host keys: ed25519, ecdsa, rsa
	Unknown bool     // its keys are not written to known_hosts
	NoSFTP  bool
	Home    string   // $HOME of its sessions; default: a directory of its own
	Env     []string // more of the sessions' environment, NAME=VALUE
	Program string   // sshd under another name, which is its PAM service
	Client  []string // lines of its Host block in ssh_config, before those of the Lab
	As      *User    // who logs in, where we are root; default: the test's own user
	Shell   string   // As's login shell
	Inside  []string // of a root shell in a mount namespace that the server then runs in; $HOME is its Home
	IP      string   // and Port, where it listens; default: a loopback address of its own
	Port    int
	Enter   []string // command that runs the server elsewhere; Root is where the files there are seen from here
	Root    string
}

// Server is one sshd.
type Server struct {
	lab      *Lab
	Name     string // of its Host block in ssh_config
	IP       string
	Port     int
	Dir      string
	Home     string
	HostKeys []string // private key files
	Log      *Buffer
	opts     ServerOptions
	cmd      *exec.Cmd
	leash    io.Closer
	done     chan struct{}
}

// SSHD makes a Lab, or skips the test where there is no sshd.
func SSHD(t testing.TB) *Lab {
	t.Helper()
	if _, err := os.Stat(sshdPath); err != nil {
		t.Skipf("SKIP: no %s (make setup as root on Debian)", sshdPath)
	}
	dir, err := os.MkdirTemp("", "ls") // short: control sockets may lie below
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if u.Uid == "0" { // a root sshd separates privileges and wants this directory
		_ = os.MkdirAll("/run/sshd", 0o755)
	}
	l := &Lab{t: t, Dir: dir, User: u.Username, Key: filepath.Join(dir, "id"), KnownHosts: filepath.Join(dir, "known_hosts"), Config: filepath.Join(dir, "config")}
	WriteKey(t, l.Key, NewKey(t, "ed25519"))
	l.write(l.KnownHosts, "")
	l.write(l.Config, "")
	return l
}

// Start starts a server; it and its sessions are ended when the test ends.
func (l *Lab) Start(name string, o ServerOptions) *Server {
	l.t.Helper()
	if o.Program == "" {
		o.Program = sshdPath
	}
	s := &Server{lab: l, Name: name, Dir: filepath.Join(l.Dir, name), opts: o, Home: o.Home}
	if s.Home == "" {
		s.Home = filepath.Join(s.Dir, "home")
	}
	who := l.User
	for _, d := range []string{s.Dir, o.Root + s.Home} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			l.t.Fatal(err)
		}
	}
	if o.As != nil {
		who = o.As.Name
		for _, d := range []string{l.Dir, s.Dir} {
			if err := os.Chmod(d, 0o755); err != nil {
				l.t.Fatal(err)
			}
		}
		if err := os.Chown(o.Root+s.Home, o.As.UID, o.As.GID); err != nil {
			l.t.Fatal(err)
		}
	}
	n := make([]byte, 5)
	_, _ = rand.Read(n)
	if s.IP, s.Port = o.IP, o.Port; s.IP == "" {
		s.IP = fmt.Sprintf("127.%d.%d.%d", 1+n[0]%250, n[1], 1+n[2]%250)
		s.Port = 20000 + (int(n[3])<<8+int(n[4]))%10000
	}
	if len(o.Keys) == 0 {
		o.Keys = []string{"ed25519"}
	}
	for _, kind := range o.Keys {
		s.HostKeys = append(s.HostKeys, filepath.Join(s.Dir, "host_"+kind))
		signer := WriteKey(l.t, s.HostKeys[len(s.HostKeys)-1], NewKey(l.t, kind))
		if !o.Unknown {
			l.Know(s.Addr(), signer.PublicKey())
		}
	}
	l.append(l.Config, fmt.Sprintf("Host %s\n  %s\n  HostName %s\n  Port %d\n  User %s\n  IdentityFile %s\n  IdentitiesOnly yes\n  UserKnownHostsFile %s\n  GlobalKnownHostsFile /dev/null\n",
		name, strings.Join(o.Client, "\n  "), s.IP, s.Port, who, l.Key, l.KnownHosts))
	s.start()
	l.t.Cleanup(s.cleanup)
	return s
}

// Know adds a line to known_hosts.
func (l *Lab) Know(addr string, k ssh.PublicKey) {
	l.append(l.KnownHosts, KnownLine(addr, k)+"\n")
}

// KnownLine is the line of known_hosts for a key.
func KnownLine(addr string, k ssh.PublicKey) string {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && port == "22" {
		addr = host
	}
	return addr + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

// Addr is host:port of the server, as known_hosts writes it.
func (s *Server) Addr() string { return "[" + s.IP + "]:" + strconv.Itoa(s.Port) }

// HostPort is host:port of the server, as addresses are written.
func (s *Server) HostPort() string { return net.JoinHostPort(s.IP, strconv.Itoa(s.Port)) }

// mark finds the server's sessions among all processes.
func (s *Server) mark() string { return "LAUNCHER_TEST_SSHD=" + s.Dir }

func (s *Server) start() {
	t := s.lab.t
	t.Helper()
	var b strings.Builder
	for _, l := range s.opts.Lines {
		fmt.Fprintln(&b, l)
	}
	fmt.Fprintf(&b, "ListenAddress %s\nPort %d\nPidFile none\nAuthorizedKeysFile %s %q\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n", s.IP, s.Port, s.authorized(), s.Home+"/.ssh/authorized_keys")
	fmt.Fprintf(&b, "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nLogLevel VERBOSE\nSetEnv %q %q", s.mark(), "HOME="+s.Home)
	for _, e := range s.opts.Env {
		fmt.Fprintf(&b, " %q", e)
	}
	fmt.Fprintln(&b)
	for _, k := range s.HostKeys {
		fmt.Fprintln(&b, "HostKey", k)
	}
	if !s.opts.NoSFTP {
		fmt.Fprintln(&b, "Subsystem sftp internal-sftp")
	}
	conf := filepath.Join(s.Dir, "sshd_config")
	s.lab.write(conf, b.String())
	pub, err := os.ReadFile(s.lab.Key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	s.lab.write(s.authorized(), string(pub))
	if s.opts.As != nil {
		if err := os.Chmod(s.authorized(), 0o644); err != nil { // it is read as them
			t.Fatal(err)
		}
	}
	s.Log, s.done = &Buffer{}, make(chan struct{})
	args := append([]string{"-c", sshdLeash, "sh"}, s.inside()...)
	s.cmd = exec.CommandContext(context.Background(), "/bin/sh", append(args, s.opts.Program, "-D", "-e", "-f", conf)...)
	s.cmd.Stderr = s.Log
	if s.leash, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	s.cmd.WaitDelay = 5 * time.Second // sessions hold the pipe of the log too
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	Eventually(t, Bound, func() string {
		if log := s.Log.String(); !strings.Contains(log, "Server listening on") {
			select {
			case <-s.done:
				t.Fatalf("sshd %s ended: %s", s.Name, log)
			default:
			}
			return "sshd " + s.Name + " does not listen: " + log
		}
		return ""
	})
}

// inside is a command that runs another in the server's own mount namespace, where its
// user has another shell and what Inside says is done; nothing if there is no need.
func (s *Server) inside() []string {
	if s.opts.Enter != nil {
		return s.opts.Enter
	}
	lines := []string{"export HOME=" + shellWord(s.Home)}
	if s.opts.As != nil {
		lines = append(lines, account(s.opts.As, s.Dir, s.Home, s.opts.Shell)...)
	}
	if lines = append(lines, s.opts.Inside...); len(lines) == 1 {
		return nil
	}
	return []string{"unshare", "-m", "--propagation", "private", "/bin/sh", "-ec", strings.Join(lines, "\n") + "\nexec \"$@\"", "sh"}
}

// account is shell lines that give a user another home and shell in a mount namespace; the
// files for it lie in dir.
func account(u *User, dir, home, shell string) (lines []string) {
	if shell == "" {
		shell = "/bin/bash"
	}
	for file, line := range map[string]string{ // a password that is only impossible: "!" would lock the account
		"passwd": fmt.Sprintf("%s:x:%d:%d::%s:%s", u.Name, u.UID, u.GID, home, shell),
		"shadow": u.Name + ":*:19000:0:99999:7:::",
	} {
		own := shellWord(filepath.Join(dir, file))
		lines = append(lines, fmt.Sprintf("{ grep -v '^%s:' /etc/%s; printf '%%s\n' %s; } >%s", u.Name, file, shellWord(line), own),
			fmt.Sprintf("chmod 644 %s; mount --bind %s /etc/%s", own, own, file))
	}
	return lines
}

func shellWord(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (s *Server) authorized() string { return filepath.Join(s.Dir, "authorized_keys") }

// Authorize lets another key in.
func (s *Server) Authorize(line string) { s.lab.append(s.authorized(), line+"\n") }

// processes are the shell that holds the server, the server, and its connections, which
// are sessions of their own.
func (s *Server) processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	parent := map[int]int{}
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if err != nil || open < 0 || !strings.HasPrefix(string(stat[open+1:end]), "sshd") && string(stat[open+1:end]) != "nsenter" {
			continue
		}
		if f := strings.Fields(string(stat[end+1:])); len(f) > 1 {
			pid, _ := strconv.Atoi(filepath.Base(d))
			parent[pid], _ = strconv.Atoi(f[1])
		}
	}
	out := []int{s.cmd.Process.Pid}
	for i := 0; i < len(out); i++ {
		for pid, up := range parent {
			if up == out[i] {
				out = append(out, pid)
			}
		}
	}
	return out
}

// Stop ends the server and all connections to it at once, as a host that goes down; what
// sessions started lives on.
func (s *Server) Stop() {
	s.Freeze() // so that no connection comes to be meanwhile
	for _, p := range s.processes() {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
	_ = s.leash.Close()
	<-s.done
}

// Cut ends all connections, and the server takes new ones.
func (s *Server) Cut() {
	for _, p := range s.processes()[2:] {
		_ = syscall.Kill(p, syscall.SIGKILL)
	}
}

// Restart starts a stopped server again, with other lines of sshd_config.
func (s *Server) Restart(lines ...string) {
	s.lab.t.Helper()
	s.opts.Lines = lines
	s.start()
}

// Freeze stops the server and every connection to it without closing them, as a link that
// is cut; Thaw lets them go on.
func (s *Server) Freeze() {
	for _, p := range s.processes() {
		_ = syscall.Kill(p, syscall.SIGSTOP)
	}
}

// Thaw ends Freeze.
func (s *Server) Thaw() {
	for _, p := range s.processes() {
		_ = syscall.Kill(p, syscall.SIGCONT)
	}
}

// Sessions gives the processes that sessions of the server have started.
func (s *Server) Sessions() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var out []int
	for _, d := range dirs {
		env, err := os.ReadFile(d + "/environ")
		if err == nil && bytes.Contains(append(env, 0), []byte(s.mark()+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			out = append(out, pid)
		}
	}
	return out
}

func (s *Server) cleanup() {
	select {
	case <-s.done:
	default:
		s.Stop()
	}
	for range 100 { // what they start in the meantime is found by the next look
		pids := s.Sessions()
		if len(pids) == 0 {
			break
		}
		for _, p := range pids {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if s.lab.t.Failed() {
		s.lab.t.Logf("sshd %s:\n%s", s.Name, s.Log)
	}
}

func (l *Lab) write(path, text string) {
	l.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *Lab) append(path, text string) {
	l.t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		_ = f.Close()
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// NewKey makes a private key: ed25519, ecdsa or rsa.
func NewKey(t testing.TB, kind string) crypto.PrivateKey {
	t.Helper()
	var k crypto.PrivateKey
	var err error
	switch kind {
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("no such kind of key: %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// WriteKey writes a private key as ssh-keygen does, and its public half beside it.
func WriteKey(t testing.TB, path string, k crypto.PrivateKey) ssh.Signer {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(k, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(signer.PublicKey()), 0o644); err != nil {
		t.Fatal(err)
	}
	return signer
}

// Certify signs a key: a user's certificate, or a host's.
func Certify(t testing.TB, ca ssh.Signer, k ssh.PublicKey, kind uint32, principals ...string) *ssh.Certificate {
	t.Helper()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c := &ssh.Certificate{Key: k, Serial: serial.Uint64(), CertType: kind, KeyId: "test", ValidPrincipals: principals, ValidBefore: ssh.CertTimeInfinity}
	if kind == ssh.UserCert {
		c.Permissions.Extensions = map[string]string{"permit-pty": "", "permit-port-forwarding": ""}
	}
	if err := c.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	return c
}
