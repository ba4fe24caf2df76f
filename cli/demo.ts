// godwit demo: the real product on one machine: processes, QUIC, certificates, QEMU. Two scenes: a VM is migrated three
// times by command, then a VM follows a user who drives past three sites. Each scene checks that nothing was lost. Exit
// code 0 only if every check passed.
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { GodwitError } from '../wire/errors.ts'
import type { DemoContext, SceneResult } from './demo/scene.ts'
import { processIo } from './io.ts'
import { json } from './output.ts'

const USAGE = `Usage: godwit demo [OPTIONS]

Two scenes, one after the other (about three minutes):

  moves  boots a Linux guest of 384 MiB with a local disk at site a, migrates it a -> b -> a live, then to b cold, over
         100 Mbit/s and 40 ms; the guest writes to both, and both are compared at the end
  drive  a user drives past three sites on an emulated 5G network and requests a page from a VM every 50 ms; the
         measurements go over MQTT to the policy, and the VM follows the user twice; ends with a report of all requests

Options:
  --short   run only the moves
  --drive   run only the drive
  --seed N  seed of the user's route and the network's jitter (default 1)
  --keep    keep the demo's folder (logs, keys, consoles)
  --json    print one JSON object at the end
  --help    show this
`

type Scene = 'moves' | 'drive'
export type DemoWish = { scenes: Scene[]; seed: number; isKept: boolean; isJson: boolean }

/** 'help', or the wanted scenes and options. Throws USAGE. */
export function parseDemo(args: string[]): DemoWish | 'help' {
  const flag = { type: 'boolean', default: false } as const
  const options = { short: flag, drive: flag, keep: flag, json: flag, help: flag, seed: { type: 'string', default: '1' } } as const
  const wrong = (message: string) => new GodwitError('USAGE', message, { hint: 'see godwit demo --help' })
  try {
    const { values } = parseArgs({ args, options })
    if (values.help) return 'help'
    if (!/^[0-9]{1,9}$/.test(values.seed)) throw wrong(`--seed: expected a number from 0 to 999999999, not '${values.seed}'`)
    if (values.short && values.drive) throw wrong('--short and --drive exclude each other; without both options the demo runs both scenes')
    const scenes: Scene[] = values.short ? ['moves'] : values.drive ? ['drive'] : ['moves', 'drive']
    return { scenes, seed: Number(values.seed), isKept: values.keep, isJson: values.json }
  } catch (error) {
    if (error instanceof GodwitError) throw error
    throw wrong(error instanceof Error ? error.message : String(error))
  }
}

export async function demo(args: string[]): Promise<number> {
  const io = processIo()
  const wish = parseDemo(args)
  if (wish === 'help') {
    io.out(USAGE)
    return 0
  }
  const { scenes, seed, isJson } = wish
  let { isKept } = wish
  const say = (text: string) => (isJson ? io.err : io.out)(`${text}\n`)
  const dir = await mkdtemp(join(tmpdir(), 'godwit-demo-'))
  const startedMs = performance.now()
  const interrupted = new AbortController()
  const stopListening = io.onInterrupt(() => interrupted.abort(new GodwitError('MIGRATION_CANCELLED', 'the demo was interrupted')))
  try {
    const problems: string[] = []
    const facts: Record<string, unknown> = {}
    for (const scene of scenes) {
      const folder = join(dir, scene)
      await mkdir(folder)
      const played = await play(scene, { dir: folder, io, say, isQuiet: isJson, seed, signal: interrupted.signal })
      for (const line of played.lines) say(line)
      for (const problem of played.problems) say(`FAIL: ${problem}`)
      problems.push(...played.problems)
      facts[scene] = played.facts
      if (scene !== scenes.at(-1)) say('')
    }
    const tookSeconds = (performance.now() - startedMs) / 1000
    say(`${problems.length === 0 ? 'all checks passed' : `failed checks: ${problems.length}`}; ${tookSeconds.toFixed(0)} s`)
    if (isJson) io.out(json({ ...facts, tookSeconds, problems, ok: problems.length === 0 }))
    return problems.length === 0 ? 0 : 1
  } catch (error) {
    // The error names log files in this folder.
    isKept ||= !interrupted.signal.aborted
    throw error
  } finally {
    stopListening()
    if (isKept) say(`kept the demo's folder: ${dir}`)
    else await rm(dir, { recursive: true, force: true })
  }
}

async function play(scene: Scene, context: DemoContext): Promise<SceneResult> {
  if (scene === 'moves') return await (await import('./demo/moves.ts')).playMoves(context)
  return await (await import('./demo/drive.ts')).playDrive(context)
}
