#include <stdexcept>
#include <string>

extern "C" int catches()
{
    try {
        throw std::runtime_error(std::string("seven") + "!");
    } catch (const std::exception &error) {
        return std::string(error.what()).size();
    }
}
