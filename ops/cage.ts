// Starts a foreign program (QEMU, its tools) with limits. Enters: its command line, and how large a file it may write.
// Leaves: a command line, an environment. Always holds: it receives no variable of Godwit (tokens, paths); no file that
// it writes exceeds the limit, and at the limit a write fails (EFBIG) but the program continues: a guest that fills its
// log while no agent shortens it keeps running.

/** dash and POSIX count `ulimit -f` in these. */
const BLOCK_BYTES = 512

/**
 * SIGXFSZ is ignored before the limit is set; ignored signals and limits outlive exec (signal(7), getrlimit(2)). The
 * pid stays. Descriptors from `firstUngiven` on are closed: LevelDB opens its files without O_CLOEXEC, and the program
 * could write to the node's own store. bash, because dash knows only descriptors of one digit; its POSIX mode has the
 * unit of `ulimit -f`; env takes away what bash adds to the environment. `addressBytes`: limit of the program's
 * address space; absent: no limit.
 */
export function cagedCommand(
  binary: string,
  args: string[],
  limitBytes: number,
  { addressBytes, firstUngiven = 3 }: { addressBytes?: number; firstUngiven?: number } = {},
): { file: string; args: string[] } {
  const memory = addressBytes === undefined ? '' : `ulimit -v ${Math.ceil(addressBytes / 1024)}; `
  const closing = `for f in /proc/self/fd/*; do n=\${f##*/}; [ "$n" -lt ${firstUngiven} ] || eval "exec $n>&-"; done; `
  const script = `trap '' XFSZ; ${closing}ulimit -f ${Math.ceil(limitBytes / BLOCK_BYTES)}; ${memory}exec env -u SHLVL -u _ "$@"`
  return { file: '/bin/bash', args: ['--norc', '--noprofile', '--posix', '-c', script, 'qemu', binary, ...args] }
}

/**
 * The same for a tool that works for this process alone: the kernel kills it when this process ends in whatever way
 * (setpriv(1), PR_SET_PDEATHSIG of prctl(2)). A QEMU must outlive its agent, a qemu-nbd must not.
 */
export const cagedTool = (binary: string, args: string[], limitBytes: number, addressBytes?: number): { file: string; args: string[] } =>
  cagedCommand('setpriv', ['--pdeathsig', 'KILL', binary, ...args], limitBytes, addressBytes === undefined ? {} : { addressBytes })

/** Exit code of a shell that does not find its program (POSIX, 2.8.2). */
export const NOT_FOUND = 127

/** The whole environment of QEMU. */
export const cleanEnvironment = (env: NodeJS.ProcessEnv = process.env): NodeJS.ProcessEnv => ({
  PATH: env['PATH'] ?? '/usr/local/bin:/usr/bin:/bin',
  LANG: 'C.UTF-8',
})
