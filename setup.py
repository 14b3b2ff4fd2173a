"""What is compiled: the C kernels once per instruction set, and one Cython extension per file.

Only this file knows compiler flags. The same source becomes code for every level, and the import chooses; nothing here
depends on the processor of the build machine. FASTNORM_OPENMP=0 builds without OpenMP, FASTNORM_DEBUG=1 with bounds checks
in Cython and assertions of the address and undefined-behaviour sanitizers in C.
"""

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No multiply-add fused by the compiler, no reassociation: the same bits at every level, from every compiler.
CFLAGS = ["-std=gnu11", "-O2", "-g0", "-ffp-contract=off", "-fno-math-errno"]
AVX512 = ["-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
LEVELS = {
    "x86_64": {"baseline": [], "avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512, "avx512_wide": AVX512},
    "aarch64": {"neon": []},
}
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
DEBUG = os.environ.get("FASTNORM_DEBUG") == "1"
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if DEBUG else []


class BuildExt(build_ext):
    """Compiles the C kernels of each level, then links them into the one extension that owns the tables."""

    def run(self):
        """Builds, and also puts the modules beside their sources: `python -m fastnorm` in this folder finds those first."""
        super().run()
        self.copy_extensions_to_source()

    def build_extensions(self):
        openmp = self.openmp_flags()
        everywhere, kernels = self.build_kernels()
        for extension in self.extensions:
            extension.extra_compile_args += CFLAGS + openmp + SANITIZE + ["-Wno-unused-function"]
            extension.extra_link_args += openmp + SANITIZE
            objects = everywhere + (kernels if extension.name == "fastnorm._kernels.core" else [])
            extension.extra_objects += objects
            extension.depends += objects
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def openmp_flags(self):
        """How this compiler spells OpenMP; nothing where it has none."""
        if os.environ.get("FASTNORM_OPENMP") == "0":
            return []
        candidates = [["-Xpreprocessor", "-fopenmp", "-lomp"]] if sys.platform == "darwin" else [["-fopenmp"]]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            for flags in candidates:
                command = [*self.compiler.compiler_so[:1], str(source), *flags, "-o", str(Path(folder, "probe"))]
                if subprocess.run(command, capture_output=True).returncode == 0:
                    return flags
        print("fastnorm: this compiler has no OpenMP; building for one thread", file=sys.stderr)
        return []

    def build_kernels(self):
        """Object files of the scalar helpers, and of the kernels at every level; compiled side by side."""
        levels = LEVELS.get(MACHINE, {"baseline": []})
        sources = {**{f"level_{level}": flags for level, flags in levels.items()}, "dispatch": [], "pool": [], "merge": []}
        newest_header = max(p.stat().st_mtime for p in Path("csrc").glob("*.h"))

        def compile_one(item):
            name, flags = item
            source, target = Path(f"csrc/{name}.c"), Path(self.build_temp, f"csrc/{name}.o")
            if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, newest_header) or self.force:
                self.compiler.compile([str(source)], output_dir=self.build_temp, include_dirs=["csrc"],
                                      extra_postargs=CFLAGS + flags + SANITIZE + ["-fPIC", "-fvisibility=hidden"])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = dict(zip(sources, pool.map(compile_one, sources.items()), strict=True))
        return [objects.pop("merge")], list(objects.values())


def extensions():
    for path in sorted(Path("fastnorm").rglob("*.pyx")):
        yield Extension(
            ".".join(path.with_suffix("").parts), [str(path)],
            include_dirs=["csrc", numpy.get_include()],
            depends=["csrc/fastnorm.h", "csrc/scalar.h", "csrc/mix.h"],
            libraries=[] if sys.platform == "win32" else ["m"],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
        )


setup(
    ext_modules=cythonize(
        list(extensions()),
        compiler_directives={
            "language_level": 3, "boundscheck": DEBUG, "wraparound": False, "cdivision": True, "initializedcheck": False,
            "embedsignature": False, "binding": True, "freethreading_compatible": False,
        },
        build_dir="build/cython",
        nthreads=os.cpu_count() if sys.platform == "linux" else 0,  # by fork; elsewhere each process would run this file
    ),
    cmdclass={"build_ext": BuildExt},
)
