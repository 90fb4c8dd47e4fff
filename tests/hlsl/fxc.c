// Compiles HLSL with FXC as wgpu does on Windows: `fxc FILE...`. Called by tests/fxc.
//
// The first line of a file says what is compiled: `// ENTRY PROFILE`. Prints the seconds of each file, and the errors.
// The exit code is 1 where a file does not compile.
#include <windows.h>
#include <fcntl.h>
#include <io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <d3dcompiler.h>

// D3DCOMPILE_ENABLE_STRICTNESS, as in wgpu-hal's dx12/shader_compilation.rs for a release build.
#define FLAGS (1 << 11)

int main(int count, char **names) {
    // Lines end as on Linux.
    _setmode(_fileno(stdout), _O_BINARY);
    HMODULE library = LoadLibraryA("d3dcompiler_47.dll");
    pD3DCompile compile = library ? (pD3DCompile)(void *)GetProcAddress(library, "D3DCompile") : NULL;
    if (!compile) {
        fprintf(stderr, "no d3dcompiler_47.dll with D3DCompile\n");
        return 2;
    }
    int failed = 0;
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (!file) {
            fprintf(stderr, "%s: cannot be read\n", names[i]);
            return 2;
        }
        fseek(file, 0, SEEK_END);
        size_t bytes = ftell(file);
        rewind(file);
        char *text = malloc(bytes + 1);
        bytes = fread(text, 1, bytes, file);
        text[bytes] = 0;
        fclose(file);
        char entry[256], profile[16];
        if (sscanf(text, "// %255s %15s", entry, profile) != 2) {
            fprintf(stderr, "%s: the first line is not \"// ENTRY PROFILE\"\n", names[i]);
            return 2;
        }
        DWORD start = GetTickCount();
        ID3DBlob *code = NULL, *errors = NULL;
        HRESULT result = compile(text, bytes, names[i], NULL, NULL, entry, profile, FLAGS, 0, &code, &errors);
        printf("%s: %.1f s%s\n", names[i], (GetTickCount() - start) / 1000.0, FAILED(result) ? ", FAILED" : "");
        if (FAILED(result)) {
            failed = 1;
            printf("%s\n", errors ? (char *)errors->lpVtbl->GetBufferPointer(errors) : "no message");
        }
        fflush(stdout);
        if (code) code->lpVtbl->Release(code);
        if (errors) errors->lpVtbl->Release(errors);
        free(text);
    }
    return failed;
}
