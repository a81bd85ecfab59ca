package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"launcher/wire"
)

// socketsRE is what a Python program says whose ranks connect to each other themselves.
var socketsRE = regexp.MustCompile(`(?m)\binit_process_group\s*\(|\bTCPStore\s*\(|^\s*(?:import|from)\s+(?:accelerate|deepspeed|lightning|pytorch_lightning|horovod|mpi4py)\b`)

// maxProgram is how much of a program is looked at.
const maxProgram = 1 << 20

// opensSockets reports whether the ranks of a gang open sockets to each other, as far as
// the program that its command names shows: then the head gives it nodes that reach each
// other.
func opensSockets(s *wire.JobSpec) bool {
	if s.Ranks < 2 {
		return false
	}
	for _, word := range s.Command {
		if !strings.HasSuffix(word, ".py") {
			continue
		}
		if !filepath.IsAbs(word) {
			word = filepath.Join(s.Dir, word)
		}
		f, err := os.Open(word)
		if err != nil {
			continue // it may be on the nodes only
		}
		text, _ := io.ReadAll(io.LimitReader(f, maxProgram))
		f.Close()
		return socketsRE.Match(text)
	}
	return false
}
