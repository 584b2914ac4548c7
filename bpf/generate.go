package bpf

// The objects are committed, so that building needs no clang. Both byte orders
// that we ship for (amd64, arm64) are little-endian: one object serves both.
//
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-stem connect -go-package bpf connect connect.c -- -O2 -mcpu=v3 -nostdinc -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-stem cookie -go-package bpf cookie cookie.c -- -O2 -mcpu=v3 -nostdinc -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-stem from_uplink -go-package bpf fromUplink from_uplink.c -- -O2 -mcpu=v3 -nostdinc -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-stem to_uplink -go-package bpf toUplink to_uplink.c -- -O2 -mcpu=v3 -nostdinc -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -output-stem maps -go-package bpf maps maps.c -- -O2 -mcpu=v3 -nostdinc -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers
