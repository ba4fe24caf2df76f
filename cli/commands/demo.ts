// godwit demo: passes all arguments to cli/demo.ts.
import { command } from '../command.ts'

export const demo = command({
  name: 'demo',
  summary: 'run a demo on this machine: a VM moves A -> B -> A -> B, then a VM follows a user past three sites',
  details:
    'Starts a gateway, nodes and emulated links, and checks that no guest memory, no disk block and no user request was lost. ' +
    '--short runs only the moves, --drive only the drive. npm run demo also does the set-up.',
  isPassThrough: true,
  examples: ['npm run demo', 'godwit demo', 'godwit demo --drive'],
  run: async ({ args }) => {
    // The path is a variable, so that the command line works without the demo.
    const file = '../demo.ts'
    const module = (await import(file)) as { demo(args: string[]): Promise<number> }
    return await module.demo(args)
  },
})
