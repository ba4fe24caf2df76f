// Cleans the environment. Enters: the variables of the process. Leaves: the same variables, those of Godwit without
// white space around them. Pure. Always holds: a variable with a trailing line break (from a file, from $(...)) has its
// intended value; an empty one counts as unset; one with a line break or another control character inside is USAGE that
// names the variable and never shows its value, which may be a secret.
import { GodwitError } from '../wire/errors.ts'

type Environment = Record<string, string | undefined>

const isOurs = (name: string) => name.startsWith('GODWIT_') || name.startsWith('XDG_')

export function tidyEnvironment(env: Environment): Environment {
  return Object.fromEntries(
    Object.entries(env).map(([name, value]) => {
      if (value === undefined || !isOurs(name)) return [name, value]
      const text = value.trim()
      if (/\p{Cc}/u.test(text))
        throw new GodwitError('USAGE', `${name} contains a line break or another control character`, { hint: `set ${name} to one line` })
      return [name, text === '' ? undefined : text]
    }),
  )
}
