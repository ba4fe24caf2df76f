// CPU time of all processes in the namespaces of a bed, without the guest's own. Enters: namespaces, the guest's
// thread. Leaves: seconds. Always holds: processes that start or end meanwhile count; the last SAMPLE_MS of one that
// ends are missing.
import { runInNamespace } from '../../sim-network/namespaces.ts'
import type { Bed } from '../wan/bed.ts'
import { busiestThread, threadSeconds, wholeSeconds } from '../wan/cpu.ts'

const SAMPLE_MS = 500

type Meter = { stop(): Promise<number> }

export async function meterBed({ namespaces }: Bed, qemu: number): Promise<Meter> {
  const guest = busiestThread(qemu)
  const begun = new Map<number, number>()
  const last = new Map<number, number>()
  const secondsOf = (pid: number) => wholeSeconds(pid) - (pid === qemu ? threadSeconds(pid, guest) : 0)
  const sample = async (isFirst: boolean) => {
    for (const name of Object.values(namespaces)) {
      const pids = (await runInNamespace(name, 'ip', 'netns', 'pids', name)).split('\n').filter(Boolean).map(Number)
      for (const pid of pids) {
        const seconds = secondsOf(pid)
        if (isFirst) begun.set(pid, seconds)
        last.set(pid, Math.max(seconds, last.get(pid) ?? 0))
      }
    }
  }
  await sample(true)
  let running = Promise.resolve()
  const timer = setInterval(() => {
    running = running.then(() => sample(false)).catch(() => {})
  }, SAMPLE_MS)
  return {
    async stop() {
      clearInterval(timer)
      await running
      await sample(false)
      return [...last].reduce((sum, [pid, seconds]) => sum + seconds - (begun.get(pid) ?? 0), 0)
    },
  }
}
