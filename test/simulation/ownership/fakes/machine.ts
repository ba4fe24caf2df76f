// Starts and finds the QEMUs of qemu.ts. The commands on top of QMP are production's.
import { qmpCommands } from '../../../../edge-node/qmp/commands.ts'
import type { MachineExit } from '../../../../edge-node/vm/exit.ts'
import type { LaunchOptions, RunningVm } from '../../../../edge-node/vm/machine.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { hostOf } from '../host.ts'
import { Qemu } from '../qemu.ts'
import { pass, say, stage } from '../stage.ts'
import { later, never, pause, processNow } from '../time.ts'

const exitError = (name: string): GodwitError => new GodwitError('QEMU_EXITED', `QEMU of ${name} ended`)

export async function startMachine({ spec, dir, incoming }: LaunchOptions): Promise<RunningVm> {
  const process = processNow()
  const host = hostOf(process)
  if (host.processFiles.get(dir)?.alive) throw new GodwitError('VM_STATE', 'a QEMU runs in this folder already')
  await pass('before qemu start')
  const qemu = new Qemu(host, spec.name, dir, incoming)
  host.qemus.push(qemu)
  say(`starts ${qemu.process.name}${incoming ? ' incoming' : ''}`)
  await pass('after qemu start')
  await pause(process, stage().random.between(5, 40))
  host.processFiles.set(dir, qemu)
  if (!qemu.alive) throw exitError(spec.name)
  return runningVm(qemu, spec.name, spec.memoryBytes, false)
}

export async function adoptMachine({
  spec,
  dir,
}: {
  spec: { name: string; memoryBytes: number }
  dir: string
}): Promise<RunningVm | undefined> {
  const process = processNow()
  const host = hostOf(process)
  await pause(process, 1)
  const qemu = host.processFiles.get(dir)
  if (!qemu?.alive) {
    for (const leftover of host.qemus) if (leftover.dir === dir) leftover.end('agent')
    return undefined
  }
  await pause(process, stage().random.between(1, 10))
  return runningVm(qemu, spec.name, spec.memoryBytes, true)
}

/** QMP's client as far as production uses it. */
function qmpOf(qemu: Qemu) {
  const process = processNow()
  const gone = (what: string) => new GodwitError('QEMU_EXITED', `the connection to QEMU ended during ${what}`)
  let detached = false
  const closed = new Promise<undefined>(resolve => qemu.onEnd.add(() => later(process, 0.3, () => resolve(undefined))))
  return {
    version: { major: 10, minor: 0, micro: 2 },
    closed,
    get ended() {
      return detached || !qemu.alive
    },
    async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
      const isQuery = command.startsWith('query') || command === 'migrate-set-parameters'
      if (!isQuery) await pass(`before qmp ${command}`)
      if (!process.alive) await never()
      if (detached || !qemu.alive) throw gone(command)
      const answer = await new Promise<{ value?: unknown; error?: unknown }>(resolve => {
        const reply = (value: { value?: unknown; error?: unknown }) => void later(process, stage().qmpMs(), () => resolve(value))
        const onEnd = () => reply({ error: gone(command) })
        qemu.onEnd.add(onEnd)
        later(qemu.process, stage().qmpMs(), () => {
          qemu.onEnd.delete(onEnd)
          try {
            if (!isQuery) say(`qmp ${command}`)
            reply({ value: qemu.execute(command, args) })
          } catch (error) {
            reply({ error })
          }
        })
      })
      if (!isQuery) await pass(`after qmp ${command}`)
      if ('error' in answer) throw answer.error
      return answer.value
    },
    on(event: string, listener: (event: unknown) => void) {
      const heard = (name: string) => {
        if (name === event || event === '*') later(process, 0.5, () => detached || listener({ event: name, data: {}, atMs: 0 }))
      }
      qemu.onEvent.add(heard)
      return () => qemu.onEvent.delete(heard)
    },
    waitFor: () => never(),
    close() {
      detached = true
    },
  }
}

function runningVm(qemu: Qemu, name: string, memoryBytes: number, adopted: boolean): RunningVm {
  const process = processNow()
  const qmp = qmpOf(qemu)
  const exited = new Promise<MachineExit>(resolve => {
    const tell = () =>
      later(process, stage().random.between(0.5, adopted ? 250 : 5), () => resolve({ code: null, signal: null, logTail: '' }))
    if (qemu.alive) qemu.onEnd.add(() => void tell())
    else tell()
  })
  const kill = async () => {
    await pass('before kill')
    qemu.end('agent')
    await pass('after kill')
    return await exited
  }
  const vm = {
    accelerator: 'tcg',
    incoming: qemu.incoming,
    qemuVersion: '10.0.2',
    name,
    pid: qemu.pid,
    identity: { pid: qemu.pid, startTicks: '0', bootId: '' },
    adopted,
    dir: qemu.dir,
    runDir: qemu.runDir,
    memoryBytes,
    qmp,
    commands: qmpCommands(qmp as unknown as Parameters<typeof qmpCommands>[0]),
    console: undefined,
    memoryFd: async () => qemu.openMemory(),
    memoryTakenBytes: async () => 0,
    user: () => undefined,
    exited,
    get alive() {
      return qemu.alive
    },
    stop: kill,
    kill,
    logTail: async () => '',
    detach: () => qmp.close(),
  }
  return vm as unknown as RunningVm
}
