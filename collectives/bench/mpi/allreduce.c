// The peer that launcher's all-reduce is measured beside: MPI_Allreduce of float32 sums,
// called back to back, in place and not. Prints one line per size: bytes, and the median
// over samples of the slowest rank's time of a call, in microseconds.
//
//	mpicc -O2 allreduce.c -o allreduce
//	mpirun --bind-to core -n 2 ./allreduce 4096 65536 1048576 16777216 67108864
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 9 };

static int order(const void *a, const void *b) {
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double run(float *buf, int n, int calls) {
	double worst, t;
	MPI_Barrier(MPI_COMM_WORLD);
	t = MPI_Wtime();
	for (int i = 0; i < calls; i++)
		MPI_Allreduce(MPI_IN_PLACE, buf, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
	t = (MPI_Wtime() - t) / calls;
	MPI_Allreduce(&t, &worst, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
	return worst;
}

int main(int argc, char **argv) {
	int rank, size;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (int a = 1; a < argc; a++) {
		int n = atoi(argv[a]) / 4;
		float *buf = malloc((size_t)n * 4);
		for (int i = 0; i < n; i++)
			buf[i] = i % 1000 + rank;
		MPI_Allreduce(MPI_IN_PLACE, buf, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
		for (int i = 0; i < n; i++)
			if (buf[i] != size * (i % 1000) + size * (size - 1) / 2) {
				fprintf(stderr, "rank %d: element %d is wrong\n", rank, i);
				MPI_Abort(MPI_COMM_WORLD, 1);
			}
		memset(buf, 0, (size_t)n * 4);
		double t[SAMPLES], once = run(buf, n, 3);
		int calls = once > 0 && 0.04 / once < 50000 ? (int)(0.04 / once) : 50000;
		if (calls < 3)
			calls = 3;
		for (int i = 0; i < SAMPLES; i++)
			t[i] = run(buf, n, calls);
		qsort(t, SAMPLES, sizeof t[0], order);
		if (rank == 0)
			printf("%d %.2f\n", n * 4, t[SAMPLES / 2] * 1e6);
		free(buf);
	}
	MPI_Finalize();
	return 0;
}
