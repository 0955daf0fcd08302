# The bytes of a program that writes one file to its standard output, for the shell's printf.
#
# The program is a static ELF file of about 280 bytes that runs in a container with nothing else.
# It ends with the path of the file, so it refers to the store path that holds the file.
#
# machine: "x86_64" or "aarch64"; file: path of the file, may be unknown until the build as long
# as its length is given
{ machine, length }:
let
  inherit (builtins) concatStringsSep elemAt genList;

  mod = a: b: a - (a / b) * b;
  digit = n: elemAt [ "0" "1" "2" "3" "4" "5" "6" "7" ] n;
  byte = n: "\\" + digit (n / 64) + digit (mod (n / 8) 8) + digit (mod n 8);
  power = n: if n == 0 then 1 else 256 * power (n - 1);
  little = width: n: concatStringsSep "" (genList (i: byte (mod (n / power i) 256)) width);
  half = little 2;
  word = little 4;
  long = little 8;

  machines = {
    # open(path, O_RDONLY); while ((n = read(fd, sp, 4096)) > 0) write(1, sp, n); exit(n < 0)
    #
    #        lea rdi,[rip+path]; xor esi,esi; mov eax,2; syscall; test eax,eax; js fail
    #        mov ebx,eax; sub rsp,4096
    # loop:  mov edi,ebx; mov rsi,rsp; mov edx,4096; xor eax,eax; syscall; test eax,eax; js fail; je done
    #        mov edx,eax; mov edi,1; mov rsi,rsp; mov eax,1; syscall; test eax,eax; js fail; jmp loop
    # done:  xor edi,edi; jmp exit
    # fail:  mov edi,1
    # exit:  mov eax,60; syscall
    # path:
    x86_64 = {
      number = 62;
      size = 88;
      code = ''\110\215\075\121\000\000\000\061\366\270\002\000\000\000\017\005\205\300\170\070''
        + ''\211\303\110\201\354\000\020\000\000\211\337\110\211\346\272\000\020\000\000\061''
        + ''\300\017\005\205\300\170\035\164\027\211\302\277\001\000\000\000\110\211\346\270''
        + ''\001\000\000\000\017\005\205\300\170\006\353\325\061\377\353\005\277\001\000\000''
        + ''\000\270\074\000\000\000\017\005'';
    };
    #        adr x1, path; mov w0, #-100; mov w2, #0; mov w8, #56; svc #0; tbnz w0, #31, fail
    #        mov w19, w0; sub sp, sp, #4096
    # loop:  mov w0, w19; mov x1, sp; mov w2, #4096; mov w8, #63; svc #0; tbnz w0, #31, fail; cbz w0, exit
    #        mov w2, w0; mov w0, #1; mov x1, sp; mov w8, #64; svc #0; tbnz w0, #31, fail; b loop
    # fail:  mov w0, #1
    # exit:  mov w8, #94; svc #0
    # path:
    aarch64 = {
      number = 183;
      size = 100;
      code = ''\041\003\000\020\140\014\200\022\002\000\200\122\010\007\200\122\001\000\000\324''
        + ''\040\002\370\067\363\003\000\052\377\007\100\321\340\003\023\052\341\003\000\221''
        + ''\002\000\202\122\350\007\200\122\001\000\000\324\040\001\370\067\040\001\000\064''
        + ''\342\003\000\052\040\000\200\122\341\003\000\221\010\010\200\122\001\000\000\324''
        + ''\100\000\370\067\363\377\377\027\040\000\200\122\310\013\200\122\001\000\000\324'';
    };
  };

  it = machines.${machine};
  headers = 64 + 56;
  address = 4194304;
  size = headers + it.size + length + 1;
in
# the file header: magic, 64 bits, little endian, System V
''\177ELF\002\001\001'' + byte 0 + long 0
# an executable for the machine, entered behind the headers; one program header, no sections
+ half 2 + half it.number + word 1 + long (address + headers) + long 64 + long 0
+ word 0 + half 64 + half 56 + half 1 + half 0 + half 0 + half 0
# the program header: load the whole file, to be read and executed
+ word 1 + word 5 + long 0 + long address + long address + long size + long size + long 65536
+ it.code
