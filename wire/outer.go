package wire

import (
	"slices"
	"strings"
)

// Outer are the launchers around us whose variables processes do not see unless a job
// keeps them: a program that finds them takes itself for a part of something that it is
// not.
var Outer = []struct {
	Name            string // as --keep-env has it
	Prefixes, Names []string
}{
	{"slurm", []string{"SLURM_", "SLURMD_", "SRUN_"}, nil},
	{"mpi", []string{"PMI_", "PMIX_", "OMPI_"}, nil},
	{"pbs", []string{"PBS_"}, nil},
	{"torch", []string{"TORCHELASTIC_"}, []string{"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
		"ROLE_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}},
}

// OuterOf names the launcher that a variable is of; "" = none.
func OuterOf(variable string) string {
	for _, o := range Outer {
		if slices.Contains(o.Names, variable) || slices.ContainsFunc(o.Prefixes, func(p string) bool { return strings.HasPrefix(variable, p) }) {
			return o.Name
		}
	}
	return ""
}
