// QEMU's part in a migration, at the source: it migrates into our socket, gets the target's return path, and ends in
// `postmigrate`.
// Enters: the VM's QMP connection and working folder. Leaves: QEMU's migration stream, to the corridor (outgoing.ts).
// Always holds: QEMU connects to a socket in its own folder, which exists only until it has; the socket closes with
// the migration.
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { eventually, sleep, within } from '../../ops/deadline.ts'
import type { Plan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { type QmpCommands, qmpCommands } from '../qmp/commands.ts'
import { RUNTIME_FILES } from '../vm/argv.ts'
import { exitError } from '../vm/exit.ts'
import type { MemoryPath } from './memory-path.ts'
import type { Outgoing } from './outgoing.ts'
import { resumeSource } from './resume.ts'
import type { RunningQemu } from './source-options.ts'

const QEMU = "the source's QEMU"
/** From the end of its QMP connection to its own. */
const END_MS = 2_000
const CONNECT_TIMEOUT_MS = 10_000
const POSTMIGRATE_TIMEOUT_MS = 15_000

type SourceQemuOptions = RunningQemu & {
  memoryPath: MemoryPath
  plan: Plan
  log: Log
  signal: AbortSignal
  fail: (error: GodwitError) => void
}

export class SourceQemu {
  readonly #options: SourceQemuOptions
  readonly #commands: QmpCommands
  #socket: Socket | undefined

  constructor(options: SourceQemuOptions) {
    this.#options = options
    this.#commands = qmpCommands(options.qmp)
    void options.exited.then(exit => options.fail(exitError(QEMU, exit)))
  }

  /**
   * Starts QEMU's migration into the corridor. Cold: the guest stops first, and its memory travels once. `onPaused`:
   * QEMU waits for it when the guest stands still for the switch-over and its disks are still active.
   */
  async migrateInto(outgoing: Outgoing, onStarted: () => void, onPaused?: () => Promise<void>): Promise<void> {
    const { memoryPath, plan, dir, signal } = this.#options
    const commands = this.#commands
    const { connection, close } = await memoryPath.listenForQemu(join(dir, RUNTIME_FILES.outgoing))
    try {
      await commands.setCapabilities({
        ...{ events: true, 'return-path': true, 'validate-uuid': true, 'auto-converge': plan.method === 'live' },
        'pause-before-switchover': onPaused !== undefined,
      })
      if (onPaused) this.#whenPaused(onPaused)
      await commands.setParameters({ maxBandwidthBytesPerSecond: 0, downtimeLimitMs: 1, announceRounds: 0 })
      signal.throwIfAborted()
      if (plan.method === 'cold') await commands.stop()
      signal.throwIfAborted()
      // By its name in QEMU's own folder: QEMU may not be able to reach it by the whole path.
      await commands.migrate(`unix:${RUNTIME_FILES.outgoing}`)
      onStarted()
      this.#feed(
        await within(connection, { ms: CONNECT_TIMEOUT_MS, what: "QEMU's migration socket", code: 'QEMU_TIMEOUT', signal }),
        outgoing,
      )
    } finally {
      await close()
    }
  }

  #whenPaused(onPaused: () => Promise<void>): void {
    const { qmp, signal, fail } = this.#options
    const off = qmp.on('MIGRATION', ({ data }) => {
      if (data['status'] !== 'pre-switchover') return
      off()
      const goOn = async () => {
        await onPaused()
        signal.throwIfAborted()
        await this.#commands.migrateContinue()
      }
      goOn().catch(error => fail(toGodwitError(error)))
    })
    signal.addEventListener('abort', off, { once: true })
  }

  #feed(socket: Socket, outgoing: Outgoing): void {
    const { signal, fail } = this.#options
    socket.on('error', () => {})
    this.#socket = socket
    signal.addEventListener('abort', () => socket.destroy(), { once: true })
    outgoing.feed(socket).catch(error => fail(toGodwitError(error, 'QEMU_STREAM')))
  }

  /** Bytes of the target's return path. */
  readonly onReturnPath = (bytes: Uint8Array): void => void this.#socket?.write(bytes)

  /** `completed` alone proves nothing; with `postmigrate` QEMU can no longer resume by itself. */
  async postmigrate(): Promise<void> {
    const commands = this.#commands
    await eventually(
      async () => {
        const { status, errorText } = await commands.queryMigrate()
        if (status === 'failed' || status === 'cancelled')
          throw new GodwitError('MIGRATION_FAILED', `QEMU says ${status}: ${errorText ?? ''}`)
        return status === 'completed' && (await commands.queryStatus()).status === 'postmigrate' ? true : undefined
      },
      { ms: POSTMIGRATE_TIMEOUT_MS, what: 'QEMU to end its side', everyMs: 4, code: 'QEMU_TIMEOUT', signal: this.#options.signal },
    )
  }

  /** Lets the VM run here again after a failed migration; gives the migration's error. */
  async resume(error: GodwitError): Promise<GodwitError> {
    const { qmp, exited, log } = this.#options
    try {
      await resumeSource(qmp)
      return error
    } catch (cause) {
      // A QMP connection ends before QEMU's exit is known; then the VM has failed, which its registry must learn first.
      const exit = await Promise.race([exited, sleep(END_MS)])
      if (exit) return exitError(QEMU, exit)
      log.error('the VM could not be resumed at the source', { error: cause as Error })
      return new GodwitError('MIGRATION_FAILED', `${error.message}; and the VM could not be resumed`, { cause })
    }
  }

  /** Our end of the socket stays half open when QEMU closes its own. */
  close(): void {
    this.#socket?.destroy()
  }
}
