package secure

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"launcher/internal/errs"
)

// SecretFile holds what join keys are made of, beside the cluster's key.
const SecretFile = "join.secret"

// JoinSecret reads the secret that a cluster's join keys are made of, or makes it.
func JoinSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, SecretFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b = make([]byte, 32)
		rand.Read(b) // never fails
		if err = os.WriteFile(path+".new", b, 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return nil, fileErr(err, "the secret that join keys are made of")
	}
	if len(b) != 32 {
		return nil, errs.New(errs.Corrupt, "%s has %d bytes, it should have 32", path, len(b))
	}
	return b, nil
}
