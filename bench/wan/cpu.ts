// CPU time of processes (proc_pid_stat(5)) without the guest's own: the QEMU thread with the most time at the first
// measurement is the guest's CPU.
import { readdirSync, readFileSync } from 'node:fs'

/** The kernel's USER_HZ, fixed on Linux. */
const TICKS_PER_SECOND = 100

/** User and system time of one stat file, s; 0 if the process has ended. */
function secondsOf(path: string): number {
  try {
    const text = readFileSync(path, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
  } catch {
    return 0
  }
}

const threadsOf = (pid: number): number[] => {
  try {
    return readdirSync(`/proc/${pid}/task`).map(Number)
  } catch {
    return []
  }
}

/** The thread with the most CPU time. */
export function busiestThread(pid: number): number {
  const used = threadsOf(pid).map(tid => ({ tid, seconds: secondsOf(`/proc/${pid}/task/${tid}/stat`) }))
  return used.reduce((most, one) => (one.seconds > most.seconds ? one : most), { tid: 0, seconds: -1 }).tid
}

export const wholeSeconds = (pid: number): number => secondsOf(`/proc/${pid}/stat`)
export const threadSeconds = (pid: number, thread: number): number => secondsOf(`/proc/${pid}/task/${thread}/stat`)

type Meter = { seconds(): number }

/**
 * CPU seconds from now on, of whole processes and of a QEMU without the guest's thread. Ended threads count through
 * their process.
 */
export function meterCpu(pids: readonly number[], guest?: { pid: number; thread: number }): Meter {
  const whole = () => pids.reduce((sum, pid) => sum + wholeSeconds(pid), 0)
  const guestThread = () => (guest ? threadSeconds(guest.pid, guest.thread) : 0)
  const start = { whole: whole(), guest: guestThread() }
  let last = 0
  return {
    seconds: () => {
      last = Math.max(last, whole() - start.whole - (guestThread() - start.guest))
      return last
    },
  }
}
