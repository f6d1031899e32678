/** A handler's error: `code` is one of the WIT's, such as "out-of-pages". */
export class InferletError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "InferletError";
    this.code = code;
  }
}

/** The functions of an interface, throwing InferletError. */
export function checked(functions) {
  const found = {};
  for (const [name, call] of Object.entries(functions)) found[name] = throwing(call);
  return found;
}

function throwing(call) {
  return (...args) => {
    try {
      return call(...args);
    } catch (error) {
      const thrown = error?.payload ?? error;
      if (typeof thrown?.code !== "string" || thrown instanceof Error) throw error;
      throw new InferletError(thrown.code, thrown.message);
    }
  };
}
