// How a QEMU ended, in words. Pure.
import { GodwitError } from '../../wire/errors.ts'

/** `code` and `signal` are null when the agent had adopted the process: init got its exit status then. */
export type MachineExit = { code: number | null; signal: NodeJS.Signals | null; logTail: string }

/** QEMU writes this when its folder is removed while it ends. It says nothing about why. */
const NOISE = /not removing PID file/

/** The last lines of qemu.log without those that are no cause of anything. */
export const causesIn = (logTail: string): string =>
  logTail
    .split('\n')
    .filter(line => !NOISE.test(line))
    .join('\n')
    .trim()

/** `subject` (for example "QEMU of web-1") ended: by what first, then what it had written. */
export function exitError(subject: string, { code, signal, logTail }: MachineExit): GodwitError {
  const how = signal ? ` by ${signal}` : code === null ? '' : ` with exit code ${code}`
  const causes = causesIn(logTail)
  return new GodwitError('QEMU_EXITED', `${subject} ended${how}${causes === '' ? '' : `; last lines of its log:\n${causes}`}`)
}
