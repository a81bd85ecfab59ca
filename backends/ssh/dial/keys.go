package dial

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/crypto/ssh"
)

// keyFile is a private key in a file. Its passphrase is asked for once in a process, when
// a host has said that it takes the key.
type keyFile struct {
	path string

	mu     sync.Mutex
	read   bool
	pub    ssh.PublicKey
	open   ssh.Signer // nil while it is locked
	locked []byte     // the file, where it needs a passphrase
	bad    string     // why it cannot be used
	wrong  *Sitting   // when the passphrase was wrong three times
}

// key is the one keyFile of a path.
func (d *Dialer) key(path string) *keyFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.keys[path]
	if k == nil {
		k = &keyFile{path: path}
		d.keys[path] = k
	}
	return k
}

// signer gives the key to try, or why it is not tried; neither where there is no file.
func (k *keyFile) signer(a *auth) (ssh.Signer, string) {
	defer a.bound.pause()() // another host's login may be asking for its passphrase
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.read {
		k.load()
	}
	switch {
	case k.open != nil:
		return k.open, ""
	case k.bad != "" || k.locked == nil:
		return nil, k.bad
	case k.wrong != nil && k.wrong.Number == a.s.sitting.Number:
		return nil, k.thrice()
	case !a.s.sitting.Terminal:
		return nil, fmt.Sprintf("%s needs a passphrase: ssh-add %s, or run this in a terminal", k.path, k.path)
	case k.pub == nil: // an old format, that does not show its public half
		if err := k.unlock(a); err != nil {
			return nil, err.Error()
		}
		return k.open, ""
	}
	return &lazy{k, a}, ""
}

// load reads the file; mu must be held.
func (k *keyFile) load() {
	b, err := os.ReadFile(k.path)
	if errors.Is(err, os.ErrNotExist) {
		return // it may come to be there
	}
	k.read = true
	if err != nil {
		k.bad = fmt.Sprintf("%s cannot be read: %s", k.path, err)
		return
	}
	k.open, err = ssh.ParsePrivateKey(b)
	if locked, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		k.locked, k.pub = b, locked.PublicKey
		if k.pub == nil {
			k.pub = readPublic(k.path + ".pub")
		}
		return
	}
	if err != nil {
		k.open = nil
		k.bad = fmt.Sprintf("%s cannot be used: %s (a hardware key works from the agent, or with transport = \"system\")", k.path, err)
	}
}

// unlock asks for the passphrase; mu must be held.
func (k *keyFile) unlock(a *auth) error {
	if k.open != nil {
		return nil
	}
	if k.wrong != nil && k.wrong.Number == a.s.sitting.Number { // while we waited
		a.asked = fail(Denied, a.s.alias, nil, "%s: %s", a.s.alias, k.thrice())
		return a.asked
	}
	defer a.turn()()
	prompt := fmt.Sprintf("Passphrase of %s: ", k.path)
	for range 3 {
		phrase, err := a.ask(prompt, true)
		if err != nil {
			return err
		}
		open, err := ssh.ParsePrivateKeyWithPassphrase(k.locked, []byte(phrase))
		if err == nil {
			k.open = open
			return nil
		}
		prompt = fmt.Sprintf("That is not it. Passphrase of %s: ", k.path)
	}
	k.wrong = &a.s.sitting
	a.asked = fail(Denied, a.s.alias, nil, "%s: %s", a.s.alias, k.thrice())
	return a.asked
}

func (k *keyFile) thrice() string {
	return fmt.Sprintf("the passphrase of %s was wrong three times", k.path)
}

// lazy is a locked key whose public half is known.
type lazy struct {
	k *keyFile
	a *auth
}

func (l *lazy) PublicKey() ssh.PublicKey { return l.k.pub }

func (l *lazy) Algorithms() []string {
	if l.k.pub.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512}
	}
	return []string{l.k.pub.Type()}
}

func (l *lazy) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return l.SignWithAlgorithm(r, data, "")
}

func (l *lazy) SignWithAlgorithm(r io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	defer l.a.bound.pause()() // opening a key takes long on purpose
	l.k.mu.Lock()
	err := l.k.unlock(l.a)
	open := l.k.open
	l.k.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if s, ok := open.(ssh.AlgorithmSigner); ok {
		return s.SignWithAlgorithm(r, data, algorithm)
	}
	return open.Sign(r, data)
}

// readPublic reads a public key or a certificate; nil where there is none.
func readPublic(path string) ssh.PublicKey {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	k, _, _, _, err := ssh.ParseAuthorizedKey(b)
	if err != nil {
		return nil
	}
	return k
}

// publicHalf is the public key of a private key file, which may be the public file itself
// where the private half is in an agent; nil where it cannot be told without a passphrase.
func publicHalf(path string) ssh.PublicKey {
	if k := readPublic(path + ".pub"); k != nil {
		return k
	}
	if k := readPublic(path); k != nil {
		return k
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	k, err := ssh.ParsePrivateKey(b)
	if locked, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		return locked.PublicKey
	}
	if err != nil {
		return nil
	}
	return k.PublicKey()
}

var _ ssh.MultiAlgorithmSigner = (*lazy)(nil)
